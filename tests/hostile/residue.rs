//! Nothing of one request is seen by the next, however its sandbox ended and however slots are
//! reset: by scanning for written pages, or by unmapping them, as on machines with swap.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use super::yard::{Yard, fails, hostile_with_echo, says};
use crate::support::scratch;

#[test]
fn nothing_of_one_request_is_seen_by_the_next() {
    let folder = scratch();
    let limits = "memory_mib = 64\ndeadline_ms = 1000";
    let bundle = hostile_with_echo(folder.path(), limits);
    for page_scan in ["true", "false"] {
        let flags = ["--page-scan", page_scan];
        let yard = Yard::of_bundles(std::slice::from_ref(&bundle), &flags);
        for _ in 0..5 {
            yard.run(
                "hostile",
                &[
                    says(21, "write", "write"),
                    says(21, "scan", "0"),
                    fails(21, "write-and-panic", 500, "guest-trap", "`unreachable`"),
                    says(21, "scan", "0"),
                    fails(21, "write-and-loop", 504, "deadline", "within 1s"),
                    says(21, "scan", "0"),
                ],
            );
        }
        yard.stop();
    }
}

#[test]
fn nor_of_one_whose_client_has_gone() {
    let folder = scratch();
    let limits = "memory_mib = 64\ndeadline_ms = 10000";
    let bundle = hostile_with_echo(folder.path(), limits);
    for page_scan in ["true", "false"] {
        let flags = ["--page-scan", page_scan];
        let yard = Yard::of_bundles(std::slice::from_ref(&bundle), &flags);
        for round in 1..=5 {
            let mut stream = TcpStream::connect(yard.server.address()).expect("it listens");
            let head = "POST /v2/models/hostile/infer HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\n";
            stream.write_all(format!("{head}write-and-loop").as_bytes()).expect("sent");
            while yard.server.log().matches("it is written").count() < round {
                thread::sleep(Duration::from_millis(1));
            }
            stream.shutdown(Shutdown::Both).expect("shut down");
            drop(stream);
            yard.settle();
            assert_eq!(yard.failures("hostile", "cancelled"), round as u64);
            yard.run("hostile", &[says(21, "scan", "0")]);
        }
        yard.stop();
    }
}
