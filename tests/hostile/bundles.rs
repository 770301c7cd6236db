//! Bundles that are no good: their examination refuses them, whatever it dies of, and what was
//! served is served on.

use std::fs;

use tempfile::TempDir;

use super::wat::Guest;
use super::yard::Yard;
use crate::archives::Parts;
use crate::support::{guest, root, scratch, succeeded, wisp};

/// A server to which bundles are sent.
struct Target {
    yard: Yard,
    folder: TempDir,
    /// An archive whose guest has 16 MiB.
    good: Vec<u8>,
}

impl Target {
    fn start(flags: &[&str]) -> Self {
        let folder = scratch();
        let yard = Yard::deployed_to(&folder.path().join("state"), flags);
        let limits = "[limits]\nmemory_mib = 16\n";
        let bundle = Guest::GOOD.bundle(folder.path(), "guest", limits);
        let packed = folder.path().join("good.wisp");
        let output = wisp().arg("pack").arg(bundle).arg("-o").arg(&packed).output();
        succeeded(&output.expect("wisp runs"));
        let good = fs::read(packed).expect("it was packed");
        Self { yard, folder, good }
    }

    /// What an examination says of a guest: its reason to refuse it, if it does.
    fn examine(&self, name: &str, guest: &[u8]) -> Option<String> {
        let mut parts = Parts::read(&self.good);
        parts.replace_guest(guest);
        let kind = [("content-type", "application/vnd.oci.image.layout.v1.tar")];
        let reply = self.yard.beside(|| {
            let archive = parts.archive();
            self.yard.server.admin("PUT", "bundles?dry_run=true", &kind, &archive)
        });
        let staging = fs::read_dir(self.folder.path().join("state/staging"));
        assert_eq!(staging.expect("a folder").count(), 0, "{name}");
        match reply.status {
            422 => Some(reply.error(422, "bundle-refused")),
            status => {
                assert_eq!(status, 200, "{name}: {reply:?}");
                None
            }
        }
    }

    #[track_caller]
    fn refuses(&self, name: &str, guest: &[u8], reason: &str) {
        let said = self.examine(name, guest);
        let said = said.unwrap_or_else(|| panic!("{name} is taken"));
        assert!(said.contains(reason), "{name}: {said}");
    }
}

#[test]
fn too_much_of_something() {
    let target = Target::start(&[]);
    let refuses = |name: &str, guest: Guest, reason: &str| {
        target.refuses(name, &guest.component(""), reason);
    };
    assert_eq!(target.examine("good", &Guest::GOOD.component("")), None);
    let memory = |memory| Guest { memory, ..Guest::GOOD };
    refuses("initial memory", memory("512"), "needs more than 16 MiB of memory");
    refuses("all memory there is", memory("65536"), "needs more than 16 MiB of memory");
    refuses("a memory of 64 bits", memory("i64 4"), "memory64");
    let fields = |fields| Guest { fields, ..Guest::GOOD };
    refuses("a large table", fields("(table 30000 funcref)"), "needs more than 16 MiB");
    refuses("a giant table", fields("(table 4294967295 funcref)"), "needs more than 16 MiB");
    // A table that changes cannot be snapshotted, so none does.
    let grows = "(table 1 funcref) (func (drop (table.grow (ref.null func) (i32.const 1))))";
    refuses("a table that grows", fields(grows), "unsupported `table.grow` instruction");
    let sets = "(table 1 funcref) (func (table.set (i32.const 0) (ref.null func)))";
    refuses("a table that is set", fields(sets), "unsupported `table.set` instruction");
    let fills = "(table 1 funcref) (func (table.fill (i32.const 0) (ref.null func) (i32.const 1)))";
    refuses("a table that is filled", fields(fills), "unsupported `table.fill` instruction");

    let many = |count: usize, module: &str| -> String {
        let one = |index| {
            format!("(core module $m{index} {module}) (core instance (instantiate $m{index}))")
        };
        (0..count).map(one).collect()
    };
    let again = "(core module $m) (core instance (instantiate $m)) ".to_owned()
        + &"(core instance (instantiate $m))".repeat(2000);
    for (name, more, reason) in [
        ("core instances", many(100, ""), "instances"),
        ("memories", many(20, "(memory 1)"), "the examination ended without a report"),
        ("tables", many(1, &"(table 1 funcref)".repeat(80)), "tables"),
        ("one module again and again", again, "instances count exceeds limit of 1000"),
    ] {
        target.refuses(name, &Guest::GOOD.component(&more), reason);
    }
    target.yard.stop();
}

#[test]
fn loops_before_the_first_request() {
    let target = Target::start(&["--examine-seconds", "2"]);
    let late = "the examination took longer than 2 s";
    let start = "(func $start (loop $again (br $again))) (start $start)";
    let guest = Guest { fields: start, ..Guest::GOOD }.component("");
    target.refuses("a start function that loops", &guest, late);
    let start = "(func $start unreachable) (start $start)";
    let guest = Guest { fields: start, ..Guest::GOOD }.component("");
    target.refuses("a start function that traps", &guest, "unreachable");
    target.yard.stop();
}

#[test]
fn components_that_are_broken() {
    let target = Target::start(&[]);
    let echo = fs::read(guest("echo")).expect("the echo guest is built");
    assert_eq!(target.examine("whole", &echo), None);
    for share in [1, 5, 9] {
        let cut = &echo[..echo.len() * share / 10];
        target.refuses("truncated", cut, "not a component");
    }
    target.refuses("nothing", b"", "it is not Wasm, expected a component");
    target.refuses("a core module", b"\0asm\x01\0\0\0", "it is a core Wasm module");
    target.refuses("another world", b"\0asm\x0d\0\x01\0", "not of the world wisp:model/model");
    target.refuses("a newer format", b"\0asm\x0e\0\x01\0", "not a component");
    // Compiled code is made here, and never taken: what the tests' own servers have compiled.
    let compiled = fs::read_dir(root().join("target/tmp/test-cache")).expect("a cache");
    let compiled = compiled.map(|entry| entry.expect("an entry").path());
    let compiled = compiled.filter(|path| path.extension().is_some_and(|end| end == "cwasm"));
    let compiled = fs::read(compiled.into_iter().next().expect("compiled code")).expect("a file");
    target.refuses("a .cwasm", &compiled, "it is not Wasm, expected a component");
    target.yard.stop();
}

/// A bit that is flipped makes a component invalid, or another one: refused or taken, and no harm.
#[test]
fn components_with_flipped_bits() {
    let target = Target::start(&["--examine-seconds", "20"]);
    let echo = fs::read(guest("echo")).expect("the echo guest is built");
    let mut refused = 0;
    for round in 0..16 {
        let mut broken = echo.clone();
        let place = (round * 7919 + 13) * echo.len() / (16 * 7919);
        broken[place] ^= 1 << (round % 8);
        refused += usize::from(target.examine(&format!("byte {place}"), &broken).is_some());
    }
    println!("{refused} of 16 are refused");
    assert!(refused > 0);
    target.yard.stop();
}

/// Compilation has bounds in time and memory, and ends by them in a process of its own.
#[test]
fn compile_bombs() {
    // What was compiled before would be taken from the other tests' cache.
    let cache = scratch();
    let cache = cache.path().to_str().expect("UTF-8");
    // The first two take longer, or more memory, on any machine.
    let flags = ["--examine-seconds", "1", "--examine-memory-mib", "700", "--cache", cache];
    let target = Target::start(&flags);
    let step = "local.get 0 local.get 1 i64.mul local.tee 0 i64.clz local.set 1 ";
    let one = format!("(func (param i64 i64) {})", step.repeat(700_000));
    let many = "(func)".repeat(999_000);
    let deep = format!("(func {} {})", "block ".repeat(1_000_000), "end ".repeat(1_000_000));
    let targets: String = (0..3000).map(|depth| format!("{depth} ")).collect();
    let branches = format!(
        "(func (param i32) {} {} {})",
        "block ".repeat(3000),
        format!("local.get 0 br_table {targets} ").repeat(100),
        "end ".repeat(3000)
    );
    for (name, function, is_bomb) in [
        ("one function of 7 MB", one, true),
        ("a million functions", many, true),
        ("a million blocks in each other", deep, false),
        ("300,000 ways out of 3,000 blocks", branches, false),
    ] {
        let module = format!("(core module $bomb {function}) (core instance (instantiate $bomb))");
        let refused = target.examine("bomb", &Guest::GOOD.component(&module));
        // What compiles within the limits is none.
        assert!(refused.is_some() || !is_bomb, "{name} is taken");
        println!("{name}: {}", refused.as_deref().unwrap_or("taken"));
        if let Some(reason) = refused {
            let reasons = ["took longer than 1 s", "more than 700 MiB", "s of CPU"];
            assert!(reasons.iter().any(|known| reason.contains(known)), "{name}: {reason}");
        }
    }
    target.yard.stop();
}
