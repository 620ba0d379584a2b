//! One of each message, as docs/protocol.md has them.

use super::*;

pub fn messages() -> Vec<(&'static str, Message)> {
    let vault = world().vault;
    let (volume, seq, place) = (VOLUME, 1, Place { level: 2, index: 3 });
    let ids = vec![RecordId([2; 16]), RecordId([3; 16])];
    let name = String::from("laptop");
    let (head, checkpoint) = (Some(stored(false)), Some(stored(true)));
    let item = VolumeItem { volume: volume_body(), head: checkpoint };
    let enrol = Message::Enrol {
        proof_key: PublicKey([5; 32]),
        proof: Signature([6; 64]),
        name: name.clone(),
        bundle: vec![vec![1], vec![2, 3]],
        writer_proof: Signature([7; 64]),
    };
    let (proof, cert) = (Signature([9; 64]), vec![1, 2]);
    let recover = Message::Recover { vault, proof, name: name.clone(), cert };
    let (settings, deletions) = (vec![retention()], vec![deletion()]);
    let kept = Kept::Retention { settings, deletions, doubt: String::new() };
    let (policy, ranges) = (retention().policy, vec![(2, 2), (17, 22)]);
    vec![
        ("hello", Message::Hello { instance: InstanceId([4; 16]) }),
        ("enrol", enrol),
        ("recover", recover),
        ("list_volumes", Message::ListVolumes),
        ("list_points", Message::ListPoints { volume, from: 1, limit: 2 }),
        ("get_small", Message::GetSmall { kind: Kind::Cert, ids: vec![] }),
        ("get_chunks", Message::GetChunks { writer: WriterId([5; 16]), skip: 1, ids: ids.clone() }),
        ("get_node", Message::GetNode { volume, seq, place }),
        ("get_leaves", Message::GetLeaves { volume, seq, page: 2, mask: 3, hints: true }),
        ("get_deltas", Message::GetDeltas { volume, seq: 9 }),
        ("create_volume", Message::CreateVolume { body: volume_body() }),
        ("open_write", Message::OpenWrite { volume, takeover: true }),
        ("have", Message::Have { check: true, ids: ids.clone() }),
        ("put", Message::Put { record: vec![1, 2, 3] }),
        ("barrier", Message::Barrier),
        ("begin", Message::Begin { base: Base::Head, size: 5 << 20 }),
        ("extents", Message::Extents { runs: runs() }),
        ("commit", Message::Commit { point: stored(true).signed }),
        ("distrust", Message::Distrust { body: distrust_body() }),
        ("ask_scan", Message::AskScan),
        ("welcome", Message::Welcome { vault, name, time: TIME }),
        ("error", Message::Error { refusal: Refusal::Held, text: "held".into() }),
        ("done", Message::Done),
        ("volumes", Message::Volumes { items: vec![item] }),
        ("points", Message::Points { points: vec![stored(true), stored(false)] }),
        ("record", Message::Record { record: vec![1] }),
        ("absent", Message::Absent { id: ids[0] }),
        ("node", Message::Node { mask: 5, hashes: vec![Hash([1; 32]), Hash([2; 32])] }),
        ("leaves", Message::Leaves { runs: tag_runs() }),
        ("opened", Message::Opened { generation: 3, head, checkpoint }),
        ("have_answer", Message::HaveAnswer { have: vec![true, false, true] }),
        ("durable", Message::Durable),
        ("committed", Message::Committed { receipt: TIME }),
        ("missing", Message::Missing { ids }),
        ("queued", Message::Queued { ahead: 7 }),
        ("admitted", Message::Admitted),
        ("get_retention", Message::Keep(Keep::GetRetention)),
        ("set_retention", Message::Keep(Keep::SetRetention { volume, policy, grace: 7 })),
        ("prune", Message::Keep(Keep::Prune { volume, apply: true, clock_is_right: false })),
        ("delete", Message::Keep(Keep::Delete { volume, points: Some((17, 22)), grace: 7 })),
        ("undelete", Message::Keep(Keep::Undelete { volume })),
        ("get_gaps", Message::Keep(Keep::GetGaps { volume, from: 1, to: 22 })),
        ("get_bridges", Message::Keep(Keep::GetBridges { volume, from: 1, to: 23 })),
        ("get_gain", Message::Keep(Keep::GetGain { volume })),
        ("retention", Message::Kept(kept)),
        ("pruned", Message::Kept(Kept::Pruned { points: 23, gone: 7, ranges, note: "x".into() })),
        ("gaps", Message::Kept(Kept::Gaps { ranges: vec![(1, 9), (17, 22)] })),
        ("gain", Message::Kept(Kept::Gain { points: 7, bytes: Some(5 << 30), note: "".into() })),
        ("gain_unknown", Message::Kept(Kept::Gain { points: 0, bytes: None, note: "x".into() })),
    ]
}

// ---------------------------------------------------------------- values
