//! A world without faults or waiting: a server's session over a real store, machines,
//! and the loops that a program would run, each to its end before the next begins.
//!
//! Faults come in through what it is given: the store's place, a cut link, a liar.

use std::sync::Arc;

use dormouse_crypt::invite::{self, Binding};
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::{Block, PublicKey, TimeNs, VolumeId};
use dormouse_store::Options;
use dormouse_sync::bridge::Bridges;
use dormouse_sync::checkpoint;
use dormouse_sync::copy::{self, Outcome};
use dormouse_sync::error::{Error, Result};
use dormouse_sync::fetch;
use dormouse_sync::history::{Points, Trust};
use dormouse_sync::server::{Role, Session};

use crate::drive::{Checkpointing, Copying, Restoring};
use crate::machine::{Machine, Pool};
use crate::random::Lcg;
use crate::registry::{Memory, Place, Registered};
use crate::source::Disk;
use crate::wire::{Ear, Liar, Lied, Wire};

/// A server and its clients.
pub struct World {
    /// What the server knows.
    pub registry: Arc<Registered>,
    /// All randomness but age's.
    pub random: Lcg,
    /// The clock of everybody.
    pub now: TimeNs,
    /// Links are cut after so many messages.
    pub cut_after: Option<u64>,
    /// Lies to copies, checkpoints and restores; not to lists of points and certificates.
    pub liar: Liar,
    /// Bytes of the last copy: sent, received.
    pub traffic: (u64, u64),
    /// Hears what is said on all links.
    pub ear: Option<Ear>,
    /// Whether volumes are opened for writing though another holds them.
    pub takeover: bool,
    /// Whether the server sees the end of a copy's or a checkpoint's link.
    pub ends: bool,
    /// Where machines have their keys from; fresh ones without it.
    pub pool: Option<Arc<Pool>>,
}

/// A volume's generation, head, and the checkpoint that the head builds on.
pub type Opened = (u64, Option<StoredPoint>, Option<StoredPoint>);

/// What opening a volume for writing was answered with.
pub fn opened(message: Message) -> Result<Opened> {
    match message {
        Message::Opened { generation, head, checkpoint } => {
            Ok((generation, head, checkpoint.or(head)))
        }
        _ => Err(Error::Protocol { what: "no opening" }),
    }
}

impl World {
    /// A world in memory, with fresh keys.
    pub fn new(seed: u64) -> Self {
        Self::on(seed, Box::new(Memory::default()), Options::default(), None)
    }

    /// A world whose vault lies in this place.
    pub fn on(seed: u64, place: Box<dyn Place>, options: Options, pool: Option<Arc<Pool>>) -> Self {
        Self::of(Arc::new(Registered::new(place, options)), Lcg(seed), 1, pool)
    }

    /// A world around a server that is there.
    pub fn of(
        registry: Arc<Registered>,
        random: Lcg,
        now: TimeNs,
        pool: Option<Arc<Pool>>,
    ) -> Self {
        Self {
            registry,
            random,
            now,
            cut_after: None,
            liar: Liar::default(),
            traffic: (0, 0),
            ear: None,
            takeover: false,
            ends: false,
            pool,
        }
    }

    /// What binds proofs to a link of this client.
    pub fn binding(&self, client: PublicKey) -> Binding {
        Binding { exporter: [9; 32], client, server: PublicKey([8; 32]) }
    }

    /// A link of this client, on which nothing was said yet.
    pub fn wire(&self, client: PublicKey) -> Wire {
        let session = Session::new(self.registry.clone(), self.binding(client));
        let mut wire = Wire::new(session, self.now);
        wire.ear = self.ear.clone();
        wire
    }

    /// A new machine with a new vault.
    pub fn machine(&mut self) -> Machine {
        let machine = Machine::new(&mut self.random, self.pool.clone());
        let records = machine.vault_records(self.now);
        self.enrol(&machine, 0, &records).unwrap();
        machine
    }

    /// A second machine of the same vault.
    pub fn second(&mut self, first: &Machine, group: u32) -> Machine {
        let machine = first.second(&mut self.random);
        self.enrol(&machine, group, &[]).unwrap();
        machine
    }

    /// Has a machine join by an invite, with its certificate and these records.
    pub fn enrol(&mut self, machine: &Machine, group: u32, more: &[Vec<u8>]) -> Result<Message> {
        self.enrol_as(Role::Writer, machine, group, more)
    }

    /// The same for a role.
    pub fn enrol_as(
        &mut self,
        role: Role,
        machine: &Machine,
        group: u32,
        more: &[Vec<u8>],
    ) -> Result<Message> {
        let secret = invite::secret(&mut self.random);
        let key = invite::key(&secret).unwrap();
        self.registry.invite_as(invite::verifier(&key.public()), role);
        let mut bundle = vec![machine.cert(group, self.now)];
        bundle.extend_from_slice(more);
        let message = machine.enrol(&secret, &self.binding(machine.transport), bundle);
        self.wire(machine.transport).ask(&message)
    }

    /// A link on which this machine was welcomed, a second later.
    pub fn hello(&mut self, machine: &Machine) -> Result<Wire> {
        self.now += 1_000_000_000;
        let mut wire = self.wire(machine.transport);
        wire.cut_after = self.cut_after;
        wire.ask(&Message::Hello { instance: machine.instance() })?;
        Ok(wire)
    }

    /// A new volume of this machine.
    pub fn volume(&mut self, machine: &Machine, name: &str) -> VolumeId {
        let (id, body) = machine.volume(&mut self.random, name, self.now);
        let mut wire = self.hello(machine).unwrap();
        assert_eq!(wire.ask(&Message::CreateVolume { body }), Ok(Message::Done));
        id
    }

    /// Opens a volume for writing.
    pub fn open(&mut self, wire: &mut Wire, volume: VolumeId) -> Result<Opened> {
        opened(wire.ask(&Message::OpenWrite { volume, takeover: self.takeover })?)
    }

    /// Copies by a scan.
    pub fn copy(&mut self, machine: &Machine, volume: VolumeId, disk: &Disk) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Scan, None)
    }

    /// Copies by a scan that asks for every chunk.
    pub fn check(&mut self, machine: &Machine, volume: VolumeId, disk: &Disk) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Check, None)
    }

    /// Copies these changed blocks as a delta point.
    pub fn copy_changes(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        changed: &[Block],
    ) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Changes, Some(changed))
    }

    fn copy_mode(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        mode: copy::Mode,
        changed: Option<&[Block]>,
    ) -> Result<Outcome> {
        let mut wire = self.hello(machine)?;
        let opened = self.open(&mut wire, volume)?;
        let plan = disk.plan(machine, volume, opened, mode, changed);
        let result = self.run_copy(machine, &mut wire, plan, disk, changed);
        self.done_with(&mut wire);
        result
    }

    fn done_with(&mut self, wire: &mut Wire) {
        self.traffic = (wire.sent, wire.received);
        if self.ends {
            wire.end();
        }
    }

    /// Scans some pages of it; the rest of the volume stays as the last checkpoint has it.
    pub fn copy_part(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        pages: core::ops::Range<u64>,
    ) -> Result<Outcome> {
        let mut wire = self.hello(machine)?;
        let opened = self.open(&mut wire, volume)?;
        let plan = disk.plan(machine, volume, opened, copy::Mode::Scan, None);
        let plan = copy::Plan { part: pages, ..plan };
        let result = self.run_copy(machine, &mut wire, plan, disk, None);
        self.done_with(&mut wire);
        result
    }

    /// Copies by a scan that begins before the volume's opening is answered, in the
    /// belief that this is its head.
    pub fn copy_ahead(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        head: Option<StoredPoint>,
    ) -> Result<Outcome> {
        let mut wire = self.hello(machine)?;
        wire.send(&Message::OpenWrite { volume, takeover: false });
        let mut plan = disk.plan(machine, volume, (0, head, head), copy::Mode::Scan, None);
        plan.generation = copy::Generation::Asked { created: false };
        self.run_copy(machine, &mut wire, plan, disk, None)
    }

    /// Copies on a link on which the volume was opened.
    pub fn run_copy(
        &mut self,
        machine: &Machine,
        wire: &mut Wire,
        plan: copy::Plan,
        disk: &Disk,
        changed: Option<&[Block]>,
    ) -> Result<Outcome> {
        let mut ends = Lied { wire, liar: &mut self.liar };
        let random = &mut self.random;
        let mut copying = Copying::start(machine, plan, changed, self.now, random, &mut ends)?;
        let done = copying.turn(disk, self.now, random, &mut ends, usize::MAX)?;
        Ok(done.unwrap())
    }

    /// Makes a checkpoint of the head.
    pub fn checkpoint(&mut self, machine: &Machine, volume: VolumeId) -> Result<StoredPoint> {
        let mut wire = self.hello(machine)?;
        let (generation, head, checkpoint) = self.open(&mut wire, volume)?;
        let plan = checkpoint::Plan {
            generation,
            head: head.unwrap(),
            checkpoint: checkpoint.unwrap(),
            grade: Grade::Settled,
            time: self.now,
            fork: None,
        };
        let mut ends = Lied { wire: &mut wire, liar: &mut self.liar };
        let done = Checkpointing::start(machine, plan)?.turn(&mut ends)?.unwrap();
        self.done_with(&mut wire);
        Ok(self.points(machine, volume)?[done.seq as usize - 1])
    }

    /// The certificates of the vault.
    pub fn trust(&mut self, machine: &Machine) -> Result<Trust> {
        let mut trust = Trust::new(machine.authority.public());
        let mut wire = self.hello(machine)?;
        let mut answer = wire.ask(&Message::GetSmall { kind: Kind::Cert, ids: vec![] })?;
        while let Message::Record { record } = answer {
            trust.add_cert(&record)?;
            answer = wire.answer()?;
        }
        Ok(trust)
    }

    /// All points of a volume, from the first on: one chain, over bridges where some expired.
    pub fn points(&mut self, machine: &Machine, volume: VolumeId) -> Result<Vec<StoredPoint>> {
        let trust = self.trust(machine)?;
        let mut wire = self.hello(machine)?;
        let mut all = Points::from(&trust, volume, 1);
        loop {
            let Message::Points { points } = wire.ask(&all.next())? else {
                return Err(Error::Protocol { what: "no points" });
            };
            if all.add(&points)? {
                break;
            }
        }
        if let Some(((from, to), question)) = all.missing() {
            let gaps = Message::Keep(Keep::GetGaps { volume, from, to });
            let Message::Kept(Kept::Gaps { ranges }) = wire.ask(&gaps)? else {
                return Err(Error::Protocol { what: "no gaps" });
            };
            let mut bridges = Bridges::new(&trust, volume);
            let mut answer = wire.ask(&question)?;
            while let Message::Record { record } = answer {
                bridges.offer(&record)?;
                answer = wire.answer()?;
            }
            if !all.prove(&ranges, &bridges)?.unbridged.is_empty() {
                return Err(Error::Protocol { what: "a gap without a bridge" });
            }
        }
        all.done(None)
    }

    /// Restores a point; `old` is what the destination holds before (in-place).
    pub fn restore(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        seq: u64,
        old: Option<&Disk>,
    ) -> Result<(Disk, fetch::Progress)> {
        let points = self.points(machine, volume)?;
        let point = points[seq as usize - 1];
        let checkpoint = points[point.point().checkpoint as usize - 1];
        let mut disk = old.cloned().unwrap_or_default();
        let mode = if old.is_some() { fetch::Mode::InPlace } else { fetch::Mode::Fresh };
        let progress = self.restore_to(machine, volume, [point, checkpoint], mode, &mut disk)?;
        Ok((disk, progress))
    }

    /// Restores a point with its checkpoint; `disk` has what was written, also after an error.
    pub fn restore_to(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        points: [StoredPoint; 2],
        mode: fetch::Mode,
        disk: &mut Disk,
    ) -> Result<fetch::Progress> {
        debug_assert_eq!(points[0].point().volume, volume);
        let trust = self.trust(machine)?;
        self.restore_trusting(machine, trust, points, mode, disk)
    }

    /// The same for who has the certificates.
    pub fn restore_trusting(
        &mut self,
        machine: &Machine,
        trust: Trust,
        points: [StoredPoint; 2],
        mode: fetch::Mode,
        disk: &mut Disk,
    ) -> Result<fetch::Progress> {
        let volume = points[0].point().volume;
        let mut wire = self.hello(machine)?;
        let mut ends = Lied { wire: &mut wire, liar: &mut self.liar };
        let mut restoring = Restoring::start(machine, volume, trust, points, mode, disk)?;
        Ok(restoring.turn(disk, &mut ends)?.unwrap())
    }

    /// Restores all points and compares them with what they must be.
    pub fn assert_restores(&mut self, machine: &Machine, volume: VolumeId, models: &[Disk]) {
        for (i, model) in models.iter().enumerate() {
            let (disk, _) = self.restore(machine, volume, i as u64 + 1, None).unwrap();
            assert!(disk == *model, "size or content of point {}", i + 1);
        }
    }
}
