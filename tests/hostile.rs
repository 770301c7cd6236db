//! Guests, bundles and clients that mean harm. Each case fails on its own, with its own error;
//! the process lives, a bystander's answers stay right all the while, nothing is held any more
//! afterwards, one metric moves and one line of the log tells why (of what is the client's own
//! mistake, none does).
//!
//! | row | what is tried | where |
//! |---|---|---|
//! | 1 | loops in the handler, a start function, realloc, post-return | `loops`, `bundles` |
//! | 2 | endless `memory.copy` and `memory.fill` | `loops` |
//! | 3 | memory bombs | `memory`, `bundles` |
//! | 4 | tables; too many of anything | `bundles` |
//! | 5 | stack overflow | `memory` |
//! | 6 | more than one host call may carry | `memory` |
//! | 7 | tensors that lie | `calls` |
//! | 8, 9 | sprays of tensors, errors, handles | `memory` |
//! | 10 | handles that are not there | `calls` |
//! | 11 | graphs that are not the guest's | `calls` |
//! | 12 | giant batches, wrong datatypes | `calls` |
//! | 13 | computes past the deadline, clients that go away | `loops`, `clients` |
//! | 14 | pictures that are bombs | `clients` |
//! | 15 | endless output | `loops` |
//! | 16 | host calls where none may be made | `calls` |
//! | 17 | WASI: random bytes, sleep, files, sockets, names, exit | `calls`, `loops` |
//! | 18 | broken components | `bundles`, `../bad_bundles.rs` |
//! | 19 | compile bombs | `bundles` |
//! | 20 | malformed ONNX; sizes that a client has a graph compute | `../engines.rs`, `engine/tests/malformed.rs`; `memory` |
//! | 21 | residue | `residue` |
//! | 22 | more than there is room for, slow clients | `clients`, `../load.rs`, `../errors.rs` |
//! | 23 | blobs, titles, tags and signatures that lie | `../archives.rs`, `../registry.rs`, `../restarts.rs` |
//! | 24 | answers that are too large or would forge headers | `answers` |

mod answers;
mod bundles;
mod calls;
mod clients;
mod loops;
mod memory;
mod residue;
mod wat;
mod yard;
