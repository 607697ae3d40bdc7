"""The images and compose.yaml, run for real: `make image-test`, `make compose-test`.

| module | holds |
| --- | --- |
| `engine` | the engine that is there, or a private one; its commands |
| `private_engine` | a dockerd in a scratch folder, ended with its data |
| `namespaces` | mounts and a network of this process's own |
| `base_image`, `machine` | the base image: found, pulled, or made with this machine's apt |
| `build` | the images of Dockerfile, and a broker where none can be pulled |
| `container` | one container: its limits, its health, its end |
| `image_test` | every role from the image, with its limits |
| `compose_test` | `docker compose up` of compose.yaml, scaled, with a worker killed |
| `objects` | uploads and downloads that are compared byte by byte |
| `report` | one line a check |
"""
