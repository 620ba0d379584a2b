//! Every message survives the wire; every truncation is refused.

use super::*;
use crate::limits::KEEPING_MAX;
use proptest::prelude::*;

fn all() -> Vec<Message> {
    let stored = crate::point::tests::stored();
    let volume = VolumeId([1; 16]);
    let ids = vec![RecordId([2; 16]), RecordId([3; 16])];
    vec![
        Message::Hello { instance: InstanceId([4; 16]) },
        Message::Enrol {
            proof_key: PublicKey([5; 32]),
            proof: Signature([6; 64]),
            name: "laptop".into(),
            bundle: vec![vec![1], vec![2, 3]],
            writer_proof: Signature([7; 64]),
        },
        Message::Recover {
            vault: VaultId([8; 32]),
            proof: Signature([9; 64]),
            name: "new".into(),
            cert: vec![1, 2],
        },
        Message::ListVolumes,
        Message::ListPoints { volume, from: 1, limit: 2 },
        Message::GetSmall { kind: Kind::Cert, ids: vec![] },
        Message::GetChunks { writer: crate::ids::WriterId([5; 16]), skip: 1, ids: ids.clone() },
        Message::GetNode { volume, seq: 1, place: Place { level: 2, index: 3 } },
        Message::GetLeaves { volume, seq: 1, page: 2, mask: 3, hints: true },
        Message::GetDeltas { volume, seq: 9 },
        Message::CreateVolume { body: vec![1] },
        Message::OpenWrite { volume, takeover: false },
        Message::Have { check: true, ids: ids.clone() },
        Message::Put { record: vec![1, 2, 3] },
        Message::Barrier,
        Message::Begin { base: Base::Head, size: 4096 },
        Message::Extents { runs: vec![0, 1, 2] },
        Message::Commit { point: stored.signed },
        Message::Distrust { body: vec![1] },
        Message::AskScan,
        Message::Queued { ahead: 3 },
        Message::Admitted,
        Message::Welcome { vault: VaultId([1; 32]), name: "x".into(), time: 5 },
        Message::Error { refusal: Refusal::Held, text: "held".into() },
        Message::Done,
        Message::Volumes { items: vec![VolumeItem { volume: vec![1], head: Some(stored) }] },
        Message::Points { points: vec![stored, stored] },
        Message::Record { record: vec![1] },
        Message::Absent { id: ids[0] },
        Message::Node { mask: 5, hashes: vec![Hash([1; 32]), Hash([2; 32])] },
        Message::Leaves { runs: vec![] },
        Message::Opened { generation: 1, head: Some(stored), checkpoint: None },
        Message::HaveAnswer { have: vec![true, false, true] },
        Message::Durable,
        Message::Committed { receipt: 1 },
        Message::Missing { ids },
        Message::Keep(Keep::GetRetention),
        Message::Keep(Keep::SetRetention { volume, policy: "all:7d".into(), grace: 4 }),
        Message::Keep(Keep::Prune { volume, apply: true, clock_is_right: false }),
        Message::Keep(Keep::Delete { volume, points: Some((3, 9)), grace: 4 }),
        Message::Keep(Keep::Undelete { volume }),
        Message::Keep(Keep::GetGaps { volume, from: 1, to: 9 }),
        Message::Keep(Keep::GetBridges { volume, from: 1, to: 9 }),
        Message::Keep(Keep::GetGain { volume }),
        Message::Kept(Kept::Retention {
            settings: vec![retention(volume)],
            deletions: vec![deletion(volume)],
            doubt: "no".into(),
        }),
        Message::Kept(Kept::Pruned {
            points: 20,
            gone: 4,
            ranges: vec![(1, 2), (4, 5)],
            note: String::new(),
        }),
        Message::Kept(Kept::Gaps { ranges: vec![(1, 9)] }),
        Message::Kept(Kept::Gain { points: 4, bytes: Some(9), note: String::new() }),
    ]
}

fn retention(volume: VolumeId) -> crate::keeping::Retention {
    crate::keeping::Retention {
        volume,
        at: 1,
        effective: 2,
        by: "a".into(),
        policy: "all:7d".into(),
    }
}

fn deletion(volume: VolumeId) -> crate::keeping::Deletion {
    crate::keeping::Deletion {
        step: crate::keeping::Step::Asked,
        of: RecordId::ZERO,
        volume,
        points: None,
        at: 1,
        effective: 2,
        by: "a".into(),
    }
}

#[test]
fn ranges_of_points_ascend_apart() {
    let gaps = |ranges: &[(Seq, Seq)]| {
        let frame = Message::Kept(Kept::Gaps { ranges: ranges.to_vec() }).encode();
        Message::decode(&frame[4..])
    };
    assert!(gaps(&[]).is_ok() && gaps(&[(1, 3), (5, 5), (9, Seq::MAX)]).is_ok());
    for bad in [&[(0, 1)][..], &[(3, 2)], &[(1, 3), (4, 5)], &[(5, 6), (1, 2)], &[(1, 9), (3, 4)]] {
        assert!(gaps(bad).is_err(), "{bad:?}");
    }
    let many: Vec<_> = (1..=KEEPING_MAX as u64 + 1).map(|n| (2 * n, 2 * n)).collect();
    assert!(gaps(&many[1..]).is_ok() && gaps(&many).is_err());
}

#[test]
fn round_trips_and_truncations() {
    let mut types = std::collections::HashSet::new();
    for message in all() {
        let frame = message.encode();
        assert!(types.insert(frame[4]), "type {:#x} twice", frame[4]);
        let mut d = Deframer::new(FRAME_MAX);
        for (i, byte) in frame.iter().enumerate() {
            assert_eq!(d.next_message(), Ok(None), "{message:?} whole after {i} bytes");
            d.push(&[*byte]);
        }
        assert_eq!(d.next_message(), Ok(Some(message.clone())));
        assert_eq!(d.next_message(), Ok(None));
        let fixed = !matches!(
            message,
            Message::CreateVolume { .. }
                | Message::Put { .. }
                | Message::Extents { .. }
                | Message::Distrust { .. }
                | Message::Record { .. }
                | Message::Leaves { .. }
        );
        for cut in 4..frame.len() {
            let short = Message::decode(&frame[4..cut]);
            assert!(!fixed || short.is_err(), "{message:?} cut at {cut}");
        }
    }
}

#[test]
fn a_frame_beyond_its_limit_is_refused_before_it_is_read() {
    let mut d = Deframer::new(16);
    d.push(&17u32.to_le_bytes());
    assert!(matches!(d.next_message(), Err(Error::TooLarge { value: 17, limit: 16, .. })));
    let mut d = Deframer::new(16);
    d.push(&0u32.to_le_bytes());
    assert!(d.next_message().is_err());
}

#[test]
fn long_texts_are_clipped_at_a_character() {
    assert_eq!(clip("aä", 2), "a");
    let text = "ä".repeat(TEXT_MAX);
    let frame = Message::Error { refusal: Refusal::Internal, text }.encode();
    assert!(Message::decode(&frame[4..]).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_round_trip(bytes: Vec<u8>) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(&message.encode()[4..], &bytes[..]);
        }
    }
}
