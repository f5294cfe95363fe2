"""SPIFFE's interfaces to workload certificates, as SPIRE's agent serves them.

| Interface                            | Names a workload by                     | Module         |
|--------------------------------------|-----------------------------------------|----------------|
| Delegated Identity API (SPIRE)       | selectors, or one of its processes      | `delegated`    |
| SPIFFE Broker API                    | pod uid and name, or one of its processes | `broker`     |
| SPIFFE Workload API                  | nothing: the answer is for who asks     | `workload_api` |

Each has a `follow` that delivers whole states until its stream ends; who calls it decides when to try again
(`certs.subscribed`). `by_process` finds a process for the forms that need one. Keys are in these messages:
nothing here writes a message, or what a decoder says of one, into a text.
"""
