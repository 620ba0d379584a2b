//! A writer appends: whatever it says, what was there before stays as it was.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use dormouse_crypt::record;
use dormouse_format::geometry::Place;
use dormouse_format::keeping::{Deletion, Retention, Step};
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::{Base, Keep, Kept, Message, Refusal};
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::{Distrust, Volume};
use dormouse_format::{
    InstanceId, KeyId, PublicKey, RecordId, Signature, VaultId, VolumeId, WriterId,
};
use dormouse_sim::machine::Machine;
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_sync::history::hash_of;
use dormouse_sync::server::{Registry, Role};

const DAY: u64 = 24 * 3_600_000_000_000;

struct Stage {
    world: World,
    machine: Machine,
    volume: VolumeId,
    models: Vec<Disk>,
    points: Vec<StoredPoint>,
}

impl Stage {
    fn new() -> Self {
        let mut world = World::new(11);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(11);
        let mut model = Disk::new(1 << 20);
        let mut models = Vec::new();
        for n in 0..4 {
            model.write(n, noise(&mut random));
            world.copy(&machine, volume, &model).unwrap();
            models.push(model.clone());
            world.now += DAY;
        }
        let points = world.points(&machine, volume).unwrap();
        Self { world, machine, volume, models, points }
    }

    /// The points of before are there, the same, and come back; nothing is set or deleted.
    fn is_as_before(&mut self, after: &str) {
        let now = self.world.points(&self.machine, self.volume).unwrap();
        assert_eq!(now[..self.points.len()], self.points, "{after}");
        let models = self.models.clone();
        for (point, model) in self.points.clone().into_iter().zip(models) {
            let mut disk = Disk::default();
            let mode = dormouse_sync::fetch::Mode::Fresh;
            let pair = [point, point];
            self.world.restore_to(&self.machine, self.volume, pair, mode, &mut disk).unwrap();
            assert!(disk == model, "point {} {after}", point.point().seq);
        }
        let store = self.world.registry.vault(&self.machine.vault).unwrap().unwrap();
        assert_eq!((store.retention(u64::MAX), store.deletions()), (vec![], vec![]), "{after}");
        // Not even after years.
        let due = store.due(&self.volume, self.world.now + 4000 * DAY).unwrap();
        assert_eq!((due.gone, due.volume), (0, false), "{after}");
        assert_eq!(store.expired(&self.volume, 1..=u64::MAX, 9).unwrap(), [], "{after}");
    }

    /// Says this on a link of its own, with the volume open for writing.
    fn say(&mut self, message: &Message) -> Vec<Message> {
        let takeover = self.world.takeover;
        self.world.takeover = true;
        let mut wire = self.world.hello(&self.machine).unwrap();
        self.world.open(&mut wire, self.volume).unwrap();
        wire.send(message);
        let mut told = Vec::new();
        loop {
            match wire.answer() {
                Ok(answer) => told.push(answer),
                Err(dormouse_sync::Error::Refused { refusal, text }) => {
                    told.push(Message::Error { refusal, text });
                }
                Err(_) => break,
            }
        }
        wire.end();
        self.world.takeover = takeover;
        told
    }

    fn is_role(&self, role: Role) {
        let mut clients = self.world.registry.clients.lock().unwrap();
        clients.values_mut().for_each(|c| c.role = role);
    }
}

fn orders(volume: VolumeId) -> Vec<Keep> {
    vec![
        Keep::SetRetention { volume, policy: "all:1d".into(), grace: 9 * DAY },
        Keep::SetRetention { volume: VolumeId::ZERO, policy: "all:1d".into(), grace: 9 * DAY },
        Keep::Prune { volume, apply: true, clock_is_right: true },
        Keep::Prune { volume, apply: false, clock_is_right: false },
        Keep::Delete { volume, points: None, grace: 9 * DAY },
        Keep::Delete { volume, points: Some((1, 2)), grace: 9 * DAY },
        Keep::Undelete { volume },
    ]
}

#[test]
fn no_verb_lets_a_writer_change_what_is_kept() {
    let mut stage = Stage::new();
    for role in [Role::Writer, Role::Reader] {
        for ask in orders(stage.volume) {
            let mut wire = {
                stage.is_role(role);
                stage.world.hello(&stage.machine).unwrap()
            };
            let refused = wire.ask(&Message::Keep(ask.clone())).unwrap_err();
            let denied = matches!(
                refused,
                dormouse_sync::Error::Refused { refusal: Refusal::NotAuthorised, .. }
            );
            assert!(denied, "{role:?} {ask:?}: {refused:?}");
            stage.is_role(Role::Writer);
            stage.is_as_before(&format!("after {ask:?} of a {role:?}"));
        }
        // Reading it is for everybody.
        stage.is_role(role);
        let mut wire = stage.world.hello(&stage.machine).unwrap();
        let told = wire.ask(&Message::Keep(Keep::GetRetention)).unwrap();
        assert!(matches!(told, Message::Kept(Kept::Retention { .. })));
        stage.is_role(Role::Writer);
    }
}

/// Records that the store makes itself, put by a client as if it were the store.
fn forged(stage: &Stage) -> Vec<Vec<u8>> {
    let (volume, at, by) = (stage.volume, 1, "operator".to_owned());
    let retention = Retention { volume, at, effective: 1, by: by.clone(), policy: "all:1d".into() };
    let of = RecordId::ZERO;
    let asked = Deletion { step: Step::Asked, of, volume, points: None, at, effective: 1, by };
    let ranges = vec![(1, 3)];
    let expired = dormouse_format::collect::Expired { volume, at, ranges };
    [
        (Kind::Retention, retention.encode()),
        (Kind::Deletion, asked.encode()),
        (Kind::Expired, expired.encode()),
        (Kind::Point, stage.points[0].encode().to_vec()),
        (Kind::Mark, vec![0; 8]),
    ]
    .into_iter()
    .flat_map(|(kind, body)| {
        [WriterId::ZERO, stage.machine.writer()].map(|writer| record::plain(kind, writer, &body))
    })
    .collect()
}

#[test]
fn whatever_a_writer_says_history_is_as_before() {
    let mut stage = Stage::new();
    let volume = stage.volume;
    let m = &stage.machine;
    let old = stage.points[0];
    let of_another = VolumeId([9; 16]);
    let renamed = Volume {
        vault: m.vault,
        id: volume,
        writer: m.writer(),
        created: 9,
        name: "other".into(),
        origin: None,
    };
    let distrust = Distrust {
        vault: m.vault,
        chunk: RecordId([1; 16]),
        maker: m.writer(),
        key: KeyId([1; 16]),
        by: m.writer(),
    };
    let mut shrunk = *old.point();
    (shrunk.seq, shrunk.checkpoint, shrunk.size, shrunk.grade) = (5, 5, 0, Grade::Settled);
    shrunk.prev = hash_of(&stage.points[3].signed);
    let mut all = vec![
        Message::Hello { instance: InstanceId([1; 16]) },
        Message::Enrol {
            proof_key: PublicKey([1; 32]),
            proof: Signature([1; 64]),
            name: "x".into(),
            bundle: vec![],
            writer_proof: Signature([1; 64]),
        },
        Message::Recover {
            vault: m.vault,
            proof: Signature([1; 64]),
            name: "x".into(),
            cert: vec![1],
        },
        Message::ListVolumes,
        Message::ListPoints { volume, from: 1, limit: 9 },
        Message::GetSmall { kind: Kind::Retention, ids: vec![] },
        Message::GetChunks { writer: m.writer(), skip: 0, ids: vec![RecordId([1; 16])] },
        Message::GetNode { volume, seq: 1, place: Place { level: 1, index: 0 } },
        Message::GetLeaves { volume, seq: 1, page: 0, mask: 1, hints: true },
        Message::GetDeltas { volume, seq: 1 },
        Message::CreateVolume { body: m.signer.sign_body(&renamed) },
        Message::CreateVolume { body: vec![1] },
        Message::OpenWrite { volume, takeover: true },
        Message::OpenWrite { volume: of_another, takeover: true },
        Message::Have { check: true, ids: vec![RecordId([1; 16])] },
        Message::Barrier,
        Message::Begin { base: Base::Checkpoint, size: 0 },
        Message::Begin { base: Base::Head, size: 0 },
        Message::Begin { base: Base::Delta, size: 0 },
        Message::Extents { runs: vec![0, 0, 9] },
        Message::Commit { point: old.signed },
        Message::Commit { point: m.signer.sign_point(shrunk) },
        Message::Distrust { body: m.signer.sign_body(&distrust) },
        Message::Done,
        Message::Points { points: vec![old] },
        Message::Kept(Kept::Gaps { ranges: vec![(1, 3)] }),
        Message::Keep(Keep::GetRetention),
        Message::Keep(Keep::GetGaps { volume, from: 1, to: 9 }),
        Message::Keep(Keep::GetBridges { volume, from: 1, to: 9 }),
        Message::Welcome { vault: VaultId([1; 32]), name: "x".into(), time: 0 },
    ];
    all.extend(orders(volume).into_iter().map(Message::Keep));
    let puts = forged(&stage);
    all.extend(puts.iter().map(|record| Message::Put { record: record.clone() }));
    for message in &all {
        let told = stage.say(message);
        let is_put = matches!(message, Message::Put { .. });
        assert!(!is_put || matches!(told[..], [Message::Error { .. }]), "{message:?}: {told:?}");
        stage.is_as_before(&format!("after {message:?}"));
    }
    // An empty volume of no size as the newest state: the writer may, and the old ones stay.
    let empty = Disk::new(BLOCK_SIZE as u64);
    stage.world.takeover = true;
    stage.world.copy(&stage.machine, volume, &empty).unwrap();
    stage.is_as_before("after all was overwritten");
}

/// What an administrator sets waits for its grace, and nothing that it can say over the link
/// makes that less than a day.
#[test]
fn an_administrator_cannot_let_go_at_once() {
    let mut stage = Stage::new();
    let volume = stage.volume;
    stage.is_role(Role::Admin);
    let ask = |stage: &mut Stage, ask: Keep| {
        stage.world.hello(&stage.machine).unwrap().ask(&Message::Keep(ask))
    };
    for hasty in [
        Keep::Delete { volume, points: None, grace: DAY - 1 },
        Keep::SetRetention { volume, policy: "all:1d".into(), grace: 0 },
    ] {
        let refused = ask(&mut stage, hasty.clone()).unwrap_err().to_string();
        assert!(refused.contains("for who runs the store"), "{hasty:?}: {refused}");
    }
    let prune = Keep::Prune { volume, apply: true, clock_is_right: false };
    let pruned = |stage: &mut Stage| match ask(stage, prune.clone()).unwrap() {
        Message::Kept(Kept::Pruned { points, gone, ranges, .. }) => (points, gone, ranges),
        other => panic!("{other:?}"),
    };
    let policy = Keep::SetRetention { volume, policy: "all:1d".into(), grace: 2 * DAY };
    assert_eq!(ask(&mut stage, policy).unwrap(), Message::Done);
    stage.world.now += 2 * DAY - 60_000_000_000;
    assert_eq!(pruned(&mut stage), (4, 0, vec![]), "still in its grace");
    stage.world.now += 60_000_000_000;
    assert_eq!(pruned(&mut stage), (4, 3, vec![(1, 3)]));
    assert_eq!(pruned(&mut stage), (1, 0, vec![]), "the newest stays");
    // A volume's deletion can be taken back for as long; then it is gone.
    let delete = Keep::Delete { volume, points: None, grace: DAY };
    let undelete = Keep::Undelete { volume };
    assert_eq!(ask(&mut stage, delete.clone()).unwrap(), Message::Done);
    stage.world.now += DAY - 60_000_000_000;
    assert_eq!(pruned(&mut stage).1, 0, "still in its grace");
    assert_eq!(ask(&mut stage, undelete.clone()).unwrap(), Message::Done);
    stage.world.now += 2 * DAY;
    assert_eq!(pruned(&mut stage).1, 0);
    let nothing = ask(&mut stage, undelete).unwrap_err().to_string();
    assert!(nothing.contains("a deletion of disk that could be undone"), "{nothing}");
    assert_eq!(ask(&mut stage, delete).unwrap(), Message::Done);
    stage.world.now += DAY;
    assert_eq!(pruned(&mut stage), (1, 1, vec![(4, 4)]));
    let Message::Volumes { items } =
        stage.world.hello(&stage.machine).unwrap().ask(&Message::ListVolumes).unwrap()
    else {
        panic!("volumes");
    };
    assert_eq!(items, []);
}
