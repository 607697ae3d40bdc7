"""Fuzzing (docs/operations/failures.md): what comes from outside, mutated by the hundred thousand.

| module | contents |
| --- | --- |
| `odd_values`, `documents`, `wire` | mutations: of values, of JSON, of AMQP properties as bytes |
| `valid_messages`, `cases` | signed messages of every kind, and mutated deliveries made from them |
| `watch` | what no input may do: take long, grow memory, show a secret |
| `requests` | deliveries through a worker's own consumers, on a bucket in memory |
| `events` | the stream's messages through what readers of events use |
| `live_workers` | the same deliveries to a real worker process |
| `harness`, `harnesses` | readers and parsers as functions of bytes, for any engine |
| `coverage_guided` | the coverage-guided engine (atheris) over a harness |

Everything is drawn from a seed. The suite runs all of it small; `make fuzz` runs it large.
"""
