//! WASI 0.2 as other languages' toolchains import it: the functions used here, of its interfaces.

wit_bindgen::generate!({
    inline: r#"
        package test:hostile;

        world wasi-user {
            import wasi:cli/environment@0.2.0;
            import wasi:cli/exit@0.2.0;
            import wasi:cli/stdin@0.2.0;
            import wasi:cli/stdout@0.2.0;
            import wasi:cli/stderr@0.2.0;
            import wasi:clocks/monotonic-clock@0.2.0;
            import wasi:filesystem/preopens@0.2.0;
            import wasi:random/random@0.2.0;
            import wasi:random/insecure@0.2.0;
            import wasi:sockets/instance-network@0.2.0;
            import wasi:sockets/ip-name-lookup@0.2.0;
            import wasi:sockets/tcp-create-socket@0.2.0;
            import wasi:sockets/udp-create-socket@0.2.0;
        }

        package wasi:cli@0.2.0 {
            interface environment {
                get-environment: func() -> list<tuple<string, string>>;
                get-arguments: func() -> list<string>;
                initial-cwd: func() -> option<string>;
            }
            interface exit {
                exit: func(status: result);
            }
            interface stdin {
                use wasi:io/streams@0.2.0.{input-stream};
                get-stdin: func() -> input-stream;
            }
            interface stdout {
                use wasi:io/streams@0.2.0.{output-stream};
                get-stdout: func() -> output-stream;
            }
            interface stderr {
                use wasi:io/streams@0.2.0.{output-stream};
                get-stderr: func() -> output-stream;
            }
        }

        package wasi:clocks@0.2.0 {
            interface monotonic-clock {
                use wasi:io/poll@0.2.0.{pollable};
                type duration = u64;
                subscribe-duration: func(when: duration) -> pollable;
            }
        }

        package wasi:random@0.2.0 {
            interface random {
                get-random-bytes: func(len: u64) -> list<u8>;
            }
            interface insecure {
                get-insecure-random-bytes: func(len: u64) -> list<u8>;
            }
        }

        package wasi:sockets@0.2.0 {
            interface network {
                resource network;
                enum error-code {
                    unknown,
                    access-denied,
                    not-supported,
                    invalid-argument,
                    out-of-memory,
                    timeout,
                    concurrency-conflict,
                    not-in-progress,
                    would-block,
                    invalid-state,
                    new-socket-limit,
                    address-not-bindable,
                    address-in-use,
                    remote-unreachable,
                    connection-refused,
                    connection-reset,
                    connection-aborted,
                    datagram-too-large,
                    name-unresolvable,
                    temporary-resolver-failure,
                    permanent-resolver-failure,
                }
                enum ip-address-family { ipv4, ipv6 }
            }
            interface instance-network {
                use network.{network};
                instance-network: func() -> network;
            }
            interface ip-name-lookup {
                use network.{network, error-code};
                resource resolve-address-stream;
                resolve-addresses: func(network: borrow<network>, name: string)
                    -> result<resolve-address-stream, error-code>;
            }
            interface tcp {
                resource tcp-socket;
            }
            interface udp {
                resource udp-socket;
            }
            interface tcp-create-socket {
                use network.{error-code, ip-address-family};
                use tcp.{tcp-socket};
                create-tcp-socket: func(address-family: ip-address-family)
                    -> result<tcp-socket, error-code>;
            }
            interface udp-create-socket {
                use network.{error-code, ip-address-family};
                use udp.{udp-socket};
                create-udp-socket: func(address-family: ip-address-family)
                    -> result<udp-socket, error-code>;
            }
        }

        package wasi:filesystem@0.2.0 {
            interface types {
                resource descriptor;
            }
            interface preopens {
                use types.{descriptor};
                get-directories: func() -> list<tuple<descriptor, string>>;
            }
        }

        package wasi:io@0.2.0 {
            interface error {
                resource error;
            }
            interface poll {
                resource pollable {
                    block: func();
                }
            }
            interface streams {
                use error.{error};
                variant stream-error {
                    last-operation-failed(error),
                    closed,
                }
                resource input-stream {
                    blocking-read: func(len: u64) -> result<list<u8>, stream-error>;
                }
                resource output-stream {
                    write: func(contents: list<u8>) -> result<_, stream-error>;
                    blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
                    blocking-write-zeroes-and-flush: func(len: u64) -> result<_, stream-error>;
                }
            }
        }
    "#,
    generate_all,
});

use wasi::cli::{environment, exit, stderr, stdin, stdout};
use wasi::clocks::monotonic_clock::subscribe_duration;
use wasi::filesystem::preopens;
use wasi::random::{insecure, random};
use wasi::sockets::instance_network::instance_network;
use wasi::sockets::ip_name_lookup::resolve_addresses;
use wasi::sockets::network::IpAddressFamily;
use wasi::sockets::tcp_create_socket::create_tcp_socket;
use wasi::sockets::udp_create_socket::create_udp_socket;

/// Does what the order says and answers with what came of it.
pub(crate) fn run(order: &str) -> String {
    match order {
        "wasi-environment" => environment::get_environment().len().to_string(),
        "wasi-arguments" => environment::get_arguments().len().to_string(),
        "wasi-cwd" => format!("{:?}", environment::initial_cwd()),
        "wasi-folders" => preopens::get_directories().len().to_string(),
        "wasi-random" => random::get_random_bytes(1 << 62).len().to_string(),
        "wasi-insecure-random" => insecure::get_insecure_random_bytes(1 << 62).len().to_string(),
        "wasi-sleep" => {
            subscribe_duration(u64::MAX).block();
            "awake".to_owned()
        }
        "wasi-pollables" => {
            let held: Vec<_> = (0..100_000).map(|_| subscribe_duration(u64::MAX)).collect();
            held.len().to_string()
        }
        "wasi-tcp" => format!("{:?}", create_tcp_socket(IpAddressFamily::Ipv4).err()),
        "wasi-udp" => format!("{:?}", create_udp_socket(IpAddressFamily::Ipv6).err()),
        "wasi-resolve" => {
            format!("{:?}", resolve_addresses(&instance_network(), "localhost").err())
        }
        "wasi-exit" => {
            exit::exit(Ok(()));
            "still here".to_owned()
        }
        "wasi-read" => match stdin::get_stdin().blocking_read(1 << 40) {
            Ok(bytes) => bytes.len().to_string(),
            Err(_) => "closed".to_owned(),
        },
        "wasi-print-for-ever" => loop {
            for stream in [stdout::get_stdout(), stderr::get_stderr()] {
                let _ = stream.blocking_write_and_flush(b"printed through WASI\n");
            }
        },
        "wasi-zeroes" => match stdout::get_stdout().blocking_write_zeroes_and_flush(1 << 40) {
            Ok(()) => "written".to_owned(),
            Err(_) => "closed".to_owned(),
        },
        "wasi-write-much" => match stdout::get_stdout().write(&vec![b'x'; 16 << 20]) {
            Ok(()) => "written".to_owned(),
            Err(_) => "closed".to_owned(),
        },
        _ => {
            let stdout = stdout::get_stdout();
            for _ in 0..1000 {
                if stdout.blocking_write_and_flush(b"printed through WASI\n").is_err() {
                    return "stdout is closed".to_owned();
                }
            }
            order.to_owned()
        }
    }
}
