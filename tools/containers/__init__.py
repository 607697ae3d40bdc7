"""The images and compose.yaml, run for real: `make image-test`, `make compose-test`.

| module | holds |
| --- | --- |
| `engine` | the engine that is there, or a private one that ends with its data |
| `images` | the images that are needed: built, pulled, or made with this machine's apt |
| `container` | one container, objects that are compared byte by byte, one line for each check |
| `image_test` | every role from the image, with its limits |
| `compose_test` | `docker compose up` of compose.yaml, scaled, with a worker killed |
"""
