//! WASI 0.2 as other languages' toolchains import it: the functions used here, of its interfaces.

wit_bindgen::generate!({
    inline: r#"
        package test:hostile;

        world wasi-user {
            import wasi:cli/environment@0.2.0;
            import wasi:cli/stdout@0.2.0;
            import wasi:filesystem/preopens@0.2.0;
        }

        package wasi:cli@0.2.0 {
            interface environment {
                get-environment: func() -> list<tuple<string, string>>;
            }
            interface stdout {
                use wasi:io/streams@0.2.0.{output-stream};
                get-stdout: func() -> output-stream;
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
            interface streams {
                use error.{error};
                variant stream-error {
                    last-operation-failed(error),
                    closed,
                }
                resource output-stream {
                    blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
                }
            }
        }
    "#,
    generate_all,
});

use wasi::cli::{environment, stdout};
use wasi::filesystem::preopens;

/// Does what the order says and answers with what came of it.
pub(crate) fn run(order: &str) -> String {
    match order {
        "wasi-environment" => environment::get_environment().len().to_string(),
        "wasi-folders" => preopens::get_directories().len().to_string(),
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
