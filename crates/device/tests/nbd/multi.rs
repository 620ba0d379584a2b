//! Several connections to one disk: what CAN_MULTI_CONN promises.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use dormouse_device::nbd::Limits;
use dormouse_device::nbd::protocol::{command, flags, how};
use dormouse_device::{BlockDevice, Geometry, Result, Write, Zero};

use crate::client::serve;

/// Blocks that were written, and those of them that are durable.
#[derive(Default)]
struct Seen {
    written: BTreeSet<u64>,
    durable: BTreeSet<u64>,
}

#[derive(Default)]
struct Disk(Mutex<Seen>);

impl Disk {
    fn durable(&self) -> Vec<u64> {
        self.0.lock().unwrap().durable.iter().copied().collect()
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 20, block: 4096, read_only: false }
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        out.fill(u8::from(self.0.lock().unwrap().written.contains(&(at / 4096))));
        Ok(())
    }
    fn write(&self, at: u64, _: &[u8], how: Write) -> Result<()> {
        self.0.lock().unwrap().written.insert(at / 4096);
        if how.fua { self.flush() } else { Ok(()) }
    }
    fn zero(&self, at: u64, _: u64, how: Zero) -> Result<()> {
        self.write(at, &[], Write { fua: how.fua })
    }
    fn trim(&self, at: u64, _: u64) -> Result<()> {
        self.write(at, &[], Write::default())
    }
    fn flush(&self) -> Result<()> {
        let mut seen = self.0.lock().unwrap();
        seen.durable = seen.written.clone();
        Ok(())
    }
}

/// Every disk is said to allow several connections: so a flush by one that wrote nothing must
/// make durable what all others were answered, and each sees what the others wrote.
#[test]
fn a_flush_of_one_connection_covers_all_and_so_does_fua() {
    let disk = Arc::new(Disk::default());
    let running = serve(&[("disk", disk.clone())], Limits::default());
    let mut clients: Vec<_> = (0..4).map(|_| running.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let (_, bits) = client.go("disk", n % 2 == 0);
        assert_ne!(bits & flags::CAN_MULTI_CONN, 0);
    }
    let [a, b, c, d] = &mut clients[..] else { panic!("four") };
    assert_eq!(a.writes(0, 0, &[1; 4096]), 0);
    assert_eq!(b.does(command::WRITE_ZEROES, 0, 4096, 4096), 0);
    assert_eq!(c.does(command::TRIM, 0, 8192, 4096), 0);
    assert_eq!(disk.durable(), [0u64; 0]);
    assert_eq!(d.read(0, 1).unwrap(), [1], "others see it at once");
    assert_eq!(d.does(command::FLUSH, 0, 0, 0), 0);
    assert_eq!(disk.durable(), [0, 1, 2]);
    // What says of itself that it is durable is, without a flush.
    for (n, client) in (4u64..).zip([a, b, c, d]) {
        let answer = match n {
            4 => client.does(command::WRITE_ZEROES, how::FUA, n * 4096, 4096),
            5 => client.does(command::TRIM, how::FUA, n * 4096, 4096),
            _ => client.writes(how::FUA, n * 4096, &[1; 512]),
        };
        assert_eq!(answer, 0);
        assert!(disk.durable().contains(&n), "{n}");
    }
}
