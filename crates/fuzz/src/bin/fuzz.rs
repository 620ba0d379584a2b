//! The fuzzer: libFuzzer's `main`, on the target that `DORMOUSE_FUZZ_TARGET` names.
//!
//! With `DORMOUSE_FUZZ_LIST` it tells the targets, their longest inputs and what they are, and
//! with `DORMOUSE_FUZZ_SEEDS` it writes the target's seeds into that folder; then it ends.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::OnceLock;
use std::{env, fs, process};

use dormouse_crypt::hash::body_check;
use dormouse_fuzz::{TARGETS, Target};

/// The target that is meant.
fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = env::var("DORMOUSE_FUZZ_TARGET").unwrap_or_default();
        dormouse_fuzz::target(&name).expect("DORMOUSE_FUZZ_TARGET names no target")
    })
}

fn begin() {
    if env::var_os("DORMOUSE_FUZZ_LIST").is_some() {
        TARGETS.iter().for_each(|t| println!("{}\t{}\t{}", t.name, t.len_max, t.what));
        process::exit(0);
    }
    if let Some(folder) = env::var_os("DORMOUSE_FUZZ_SEEDS") {
        for seed in (target().seeds)() {
            let name = dormouse::text::hex(&body_check(&seed));
            fs::write(Path::new(&folder).join(name), seed).unwrap();
        }
        process::exit(0);
    }
    target();
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| (target().run)(data));
