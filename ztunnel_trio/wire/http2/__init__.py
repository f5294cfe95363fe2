"""HTTP/2 as HBONE needs it: CONNECT tunnels over one connection, both roles, without I/O.

| Room          | What it knows                                                     | RFC 9113 |
|---------------|-------------------------------------------------------------------|----------|
| `codes`       | error codes                                                       | 7        |
| `settings`    | what one end announces                                            | 3.4      |
| `events`      | what a connection tells                                           |          |
| `frames`      | layout of frames: cutting a buffer, writing, gathering            | 4, 6     |
| `windows`     | flow control of both directions                                   | 5.2, 6.9 |
| `streams`     | states of a stream as a table, and the streams of a connection    | 5.1      |
| `budgets`     | how much of what carries nothing a peer may send                  | 10.5     |
| `compression` | HPACK                                                             | 4.3      |
| `fields`      | header fields of a CONNECT and of its answer                      | 8        |
| `blocks`      | HEADERS and CONTINUATION                                          | 6.2, 6.10 |
| `order`       | which frame may come next                                         | 3.4, 6.10 |
| `requests`    | what a header block means at the server                           | 8.5      |
| `answers`     | what a header block means at the client                           | 8.1      |
| `payload`     | DATA that is not the usual frame                                  | 6.1      |
| `control`     | SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM, PRIORITY       | 6.3–6.9  |
| `connection`  | joins them; commands, and the usual DATA frame                    |          |
"""
