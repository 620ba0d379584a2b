//! Prints a fresh pool of keys, for `crates/sim/keys.txt`. A new pool changes what
//! every seed stands for.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    let pool = dormouse_sim::machine::Pool::make(&mut dormouse_crypt::OsRandom);
    io::stdout().write_all(pool.as_bytes())
}
