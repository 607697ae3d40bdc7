"""S3 behind one small port (SPEC 10): `core.storage_port`.

| module | contents |
| --- | --- |
| `s3`, `s3_listings` | the port on S3: objects, and listings; `s3_http` sends the requests |
| `s3_connections` | HTTP/1.1 connections: each request is sent once, on a clean one |
| `signing` | AWS Signature Version 4 |
| `s3_wire` | the contents of requests, and the meaning of responses. Pure |
| `listing` | the same for listings. Pure |
| `vendor_errors` | translates exceptions of connections |
| `credentials`, `aws_chain` | the access key of the settings, or the standard AWS chain |
| `probe` | measures the configured bucket: `keyturn doctor`, and each worker's start |
| `clock` | the storage's clock |
| `streaming_body`, `multipart` | large bodies |
"""
