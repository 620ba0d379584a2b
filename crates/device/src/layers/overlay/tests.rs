//! An overlay against a model, on a disk that loses what was not flushed.

use std::sync::Mutex;

use super::*;
use crate::memory::MemoryDevice;

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const SECTOR: usize = 512;

/// Memory that has a cache: what was not flushed may be lost, sector by sector.
struct CrashDisk {
    now: MemoryDevice,
    durable: Mutex<Vec<u8>>,
    /// Sectors written since the last flush, in order.
    pending: Mutex<Vec<(usize, Vec<u8>)>>,
    /// Calls until it fails for ever.
    calls_left: Mutex<u64>,
}

impl CrashDisk {
    fn new(bytes: Vec<u8>, calls: u64) -> Self {
        Self {
            now: MemoryDevice::new(bytes.clone(), false),
            durable: Mutex::new(bytes),
            pending: Mutex::default(),
            calls_left: Mutex::new(calls),
        }
    }

    fn alive(&self) -> Result<()> {
        let mut left = self.calls_left.lock().unwrap();
        if *left == 0 {
            return Err(Error::Io(io::Error::other("power is off")));
        }
        *left -= 1;
        Ok(())
    }

    /// What is found after the power was off: of each sector, what was flushed or any later state.
    fn after_crash(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.lock().unwrap().clone();
        for (at, sector) in self.pending.lock().unwrap().iter() {
            if random.below(3) > 0 {
                bytes[*at..at + sector.len()].copy_from_slice(sector);
            }
        }
        bytes
    }

    fn changed(&self, at: u64, len: usize) {
        let bytes = self.now.content();
        let first = at as usize / SECTOR * SECTOR;
        let end = (at as usize + len).next_multiple_of(SECTOR).min(bytes.len());
        let sectors = bytes[first..end].chunks(SECTOR).zip((first..).step_by(SECTOR));
        self.pending.lock().unwrap().extend(sectors.map(|(s, at)| (at, s.to_vec())));
    }
}

impl BlockDevice for CrashDisk {
    fn geometry(&self) -> Geometry {
        self.now.geometry()
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.alive()?;
        self.now.read(at, out)
    }
    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.alive()?;
        self.now.write(at, bytes, how)?;
        self.changed(at, bytes.len());
        if how.fua { self.flush() } else { Ok(()) }
    }
    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        self.alive()?;
        self.now.zero(at, len, how)?;
        self.changed(at, len as usize);
        Ok(())
    }
    fn trim(&self, at: u64, len: u64) -> Result<()> {
        self.zero(at, len, Zero::default())
    }
    fn flush(&self) -> Result<()> {
        self.alive()?;
        *self.durable.lock().unwrap() = self.now.content();
        self.pending.lock().unwrap().clear();
        Ok(())
    }
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        self.now.extents(at, len, most)
    }
}

/// The last block is cut, within a sector.
const SIZE: u64 = 40 * BLOCK + 700;

fn base(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    for block in bytes.chunks_mut(BLOCK as usize) {
        // Some blocks of the lower disk are zero.
        if random.below(4) > 0 {
            block.iter_mut().for_each(|b| *b = random.next() as u8);
        }
    }
    bytes
}

/// What each sector may be after a crash.
struct Model {
    now: Vec<u8>,
    may: Vec<Vec<Vec<u8>>>,
}

impl Model {
    fn new(now: Vec<u8>) -> Self {
        let may = now.chunks(SECTOR).map(|s| vec![s.to_vec()]).collect();
        Self { now, may }
    }
    fn note(&mut self, at: u64, len: u64) {
        for n in at as usize / SECTOR..(at + len).div_ceil(SECTOR as u64) as usize {
            let end = ((n + 1) * SECTOR).min(self.now.len());
            self.may[n].push(self.now[n * SECTOR..end].to_vec());
        }
    }
    fn flushed(&mut self) {
        *self = Self::new(std::mem::take(&mut self.now));
    }
}

/// One request, of any kind. Whether it was a flush.
fn request(disk: &Overlay, model: &mut Model, random: &mut Random) -> Result<bool> {
    let at = random.below(SIZE);
    let most = if random.below(3) == 0 { 6 * BLOCK } else { BLOCK };
    let (at, len) = match random.below(3) {
        0 => (at / BLOCK * BLOCK, BLOCK),
        _ => (at, random.below(most) + 1),
    };
    let len = len.min(SIZE - at);
    let range = at as usize..(at + len) as usize;
    match random.below(8) {
        0 => {
            disk.flush()?;
            return Ok(true);
        }
        1 => {
            // Noted before it is done: a part may come through.
            model.now[range].fill(0);
            model.note(at, len);
            disk.zero(at, len, Zero { keep: random.below(2) == 0, ..Zero::default() })?;
        }
        2 => {
            let whole = at.div_ceil(BLOCK) * BLOCK..(at + len) / BLOCK * BLOCK;
            if whole.start < whole.end {
                let (at, len) = (whole.start, whole.end - whole.start);
                model.now[at as usize..whole.end as usize].fill(0);
                model.note(at, len);
                disk.trim(at, len)?;
            }
        }
        3 | 4 => {
            let mut out = vec![0; len as usize];
            disk.read(at, &mut out)?;
            assert_eq!(out, model.now[range]);
        }
        _ => {
            let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            model.now[range].copy_from_slice(&bytes);
            model.note(at, len);
            disk.write(at, &bytes, Write::default())?;
        }
    }
    Ok(false)
}

/// Random requests, the power goes off, and so on, in the same file.
fn play(seed: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let random = &mut random;
    let below = base(random);
    let lower: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(below.clone(), true));
    let layout = Layout::new(SIZE, "below").unwrap();
    let mut file = vec![0; layout.file_size() as usize];
    file[..BLOCK as usize].copy_from_slice(&layout.encode());
    let mut model = Model::new(below);
    let (mut requests, mut older) = (0, 0);
    for _ in 0..6 {
        let calls = 20 + random.below(150);
        let disk = Arc::new(CrashDisk::new(file, calls));
        let overlay = Overlay::open_on(Arc::clone(&lower), disk.clone(), "below").unwrap();
        loop {
            match request(&overlay, &mut model, random) {
                Ok(true) => model.flushed(),
                Ok(false) => {}
                Err(_) => break,
            }
            requests += 1;
        }
        file = disk.after_crash(random);
        let kept = Arc::new(MemoryDevice::new(file.clone(), false));
        let overlay = Overlay::open_on(Arc::clone(&lower), kept, "below").unwrap();
        let mut found = vec![0; SIZE as usize];
        overlay.read(0, &mut found).unwrap();
        for (n, sector) in found.chunks(SECTOR).enumerate() {
            assert!(model.may[n].iter().any(|s| s == sector), "seed {seed}: sector {n}");
            older += u64::from(model.may[n].last().is_some_and(|s| s != sector));
        }
        // What is found now is what holds from here on.
        model = Model::new(found);
    }
    (requests, older)
}

#[test]
fn every_sector_survives_a_crash_as_flushed_or_as_written_later() {
    let (mut requests, mut older) = (0, 0);
    for seed in 0..300 {
        let (done, lost) = play(seed);
        requests += done;
        older += lost;
    }
    // The crashes did lose something.
    assert!(requests > 20_000 && older > 2000, "{requests} requests, {older} sectors lost");
}

fn memory(bytes: Vec<u8>) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new(bytes, true))
}

#[test]
fn a_file_keeps_what_was_written_and_belongs_to_what_lies_below() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("over");
    let below = vec![7; 3 << 20];
    let overlay = Overlay::open(memory(below.clone()), &path, "root@5").unwrap();
    let taken = Overlay::open(memory(below.clone()), &path, "root@5").unwrap_err();
    assert!(taken.to_string().contains("in use"), "{taken}");
    overlay.write(4000, &[1; 200], Write::default()).unwrap();
    overlay.zero(1 << 20, 1 << 20, Zero::default()).unwrap();
    overlay.flush().unwrap();
    assert_eq!(overlay.kept(), (1 << 20) + 2 * BLOCK);
    let extents = overlay.extents(0, 3 << 20, 100).unwrap();
    assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), 3 << 20);
    assert_eq!(extents.iter().filter(|e| e.zero).map(|e| e.len).sum::<u64>(), 1 << 20);
    drop(overlay);
    let overlay = Overlay::open(memory(below.clone()), &path, "root@5").unwrap();
    let mut out = vec![0; 3 << 20];
    overlay.read(0, &mut out).unwrap();
    let mut expected = below.clone();
    expected[4000..4200].fill(1);
    expected[1 << 20..2 << 20].fill(0);
    assert!(out == expected);
    drop(overlay);
    let other = Overlay::open(memory(below.clone()), &path, "root@6").unwrap_err();
    assert!(other.to_string().contains("made over root@5"), "{other}");
    let shorter = Overlay::open(memory(vec![7; 1 << 20]), &path, "root@5").unwrap_err();
    assert!(shorter.to_string().contains("3145728 bytes"), "{shorter}");
    let mut file = std::fs::read(&path).unwrap();
    file[14] ^= 1;
    std::fs::write(&path, &file).unwrap();
    let bad = Overlay::open(memory(below.clone()), &path, "root@5").unwrap_err();
    assert!(bad.to_string().contains("first block is damaged"), "{bad}");
    std::fs::write(&path, "some text").unwrap();
    let text = Overlay::open(memory(below), &path, "root@5").unwrap_err();
    assert!(text.to_string().contains("no overlay"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), b"some text");
}

#[test]
fn after_a_flush_that_failed_nothing_is_written() {
    let layout = Layout::new(SIZE, "x").unwrap();
    let disk = Arc::new(CrashDisk::new(vec![0; layout.file_size() as usize], 100));
    let lower = memory(vec![9; SIZE as usize]);
    let overlay = Overlay::create_on(lower, disk.clone(), layout).unwrap();
    overlay.write(0, &[1; 8192], Write::default()).unwrap();
    *disk.calls_left.lock().unwrap() = 0;
    overlay.flush().unwrap_err();
    *disk.calls_left.lock().unwrap() = 100;
    assert!(matches!(overlay.flush(), Err(Error::Damaged(_))));
    assert!(matches!(overlay.write(0, &[2; 10], Write::default()), Err(Error::Damaged(_))));
    let mut out = [0; 10];
    overlay.read(0, &mut out).unwrap();
    assert_eq!(out, [1; 10]);
}

/// Reads take a while.
struct Slow;

impl BlockDevice for Slow {
    fn geometry(&self) -> Geometry {
        Geometry { size: 32 * BLOCK, block: 4096, read_only: true }
    }
    fn read(&self, _: u64, out: &mut [u8]) -> Result<()> {
        std::thread::sleep(std::time::Duration::from_millis(2));
        out.fill(9);
        Ok(())
    }
}

/// Threads that write parts of the same blocks for the first time lose nothing of each other.
#[test]
fn parts_of_one_block_come_together() {
    let layout = Layout::new(32 * BLOCK, "x").unwrap();
    let file = Arc::new(MemoryDevice::new(vec![0; layout.file_size() as usize], false));
    let overlay = Overlay::create_on(Arc::new(Slow), file, layout).unwrap();
    let together = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (overlay, together) = (&overlay, &together);
            scope.spawn(move || {
                for block in 0..32 {
                    together.wait();
                    let at = block * BLOCK + thread * 512;
                    overlay.write(at, &[thread as u8; 512], Write::default()).unwrap();
                }
            });
        }
    });
    let mut out = vec![0; 32 * BLOCK as usize];
    overlay.read(0, &mut out).unwrap();
    for (n, sector) in out.chunks(512).enumerate() {
        assert!(sector.iter().all(|b| usize::from(*b) == n % 8), "sector {n}");
    }
}

#[test]
fn what_is_in_the_file_has_changed() {
    struct Below;
    impl BlockDevice for Below {
        fn geometry(&self) -> Geometry {
            Geometry { size: 64 << 10, block: 4096, read_only: true }
        }
        fn read(&self, _: u64, out: &mut [u8]) -> Result<()> {
            out.fill(0);
            Ok(())
        }
        fn changes_since(&self, _: &str) -> Result<Arc<dyn Changes>> {
            Ok(Arc::new(Self))
        }
    }
    impl Changes for Below {
        fn parts(&self, at: u64, len: u64, _: usize) -> Result<Vec<Change>> {
            // The first 16 KiB have changed.
            let until = if at < 16 << 10 { 16 << 10 } else { u64::MAX };
            Ok(vec![Change { len: len.min(until - at), changed: at < 16 << 10 }])
        }
    }
    let layout = Layout::new(64 << 10, "x").unwrap();
    let file = Arc::new(MemoryDevice::new(vec![0; layout.file_size() as usize], false));
    let overlay = Overlay::create_on(Arc::new(Below), file, layout).unwrap();
    overlay.write(40 << 10, &[1; 4096], Write::default()).unwrap();
    let changes = overlay.changes_since("5").unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < 64 << 10 {
        for part in changes.parts(at, (64 << 10) - at, 3).unwrap() {
            found.push((at >> 10, part.changed));
            at += part.len;
        }
    }
    assert_eq!(found, [(0, true), (16, false), (40, true), (44, false)]);
}
