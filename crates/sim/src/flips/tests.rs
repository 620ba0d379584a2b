//! A sample of all damages, and that the sample store has what it should.

use super::sample::{End, Place, entries};
use super::*;

#[test]
fn the_store_has_everything_in_it_and_is_the_same_again() {
    let sample = Sample::new(1, End::Killed);
    let again = Sample::new(1, End::Killed);
    assert!(sample.files == again.files && sample.versions == again.versions);
    let kinds = [
        "chunk",
        "map page",
        "map node",
        "delta",
        "point",
        "volume",
        "vault",
        "certificate",
        "vault keys",
        "data key",
        "distrust",
        "seal",
        "mark",
        "generation",
        "bridge",
    ];
    assert_eq!(sample.content(), kinds.into());
    assert!(sample.names(Place::Segments).len() >= 4);
    let runs = sample.names(Place::Index);
    let merged = |n: &&sample::Name| n.1[..16] != n.1[17..33];
    assert!(runs.len() >= 2 && runs.iter().any(merged), "{runs:?}");
    assert!(entries(&sample.files[sample.last()]).len() > 3);
    let bytes: usize = sample.files.values().map(Vec::len).sum();
    println!("{bytes} bytes, {} cases", cases::all(&sample).len());
}

/// What the judge must not let pass.
#[test]
fn the_judge_is_not_blind() {
    let sample = Sample::new(1, End::Killed);
    let file = sample.last().clone();
    let whole = |sample: &Sample| {
        let spots = vec![(&file, 0..=u64::MAX)];
        judge(sample, judge::Damaged { files: sample.files.clone(), spots, cut: false })
    };
    // Nothing is damaged, so nothing can name it.
    assert!(whole(&sample).unwrap_err().contains("scrub does not name it"));
    let mut other = Sample::new(1, End::Killed);
    other.volumes[1].models[0].write(0, vec![1; 4096]);
    assert!(whole(&other).unwrap_err().contains("wrong bytes in point 1"));
    let mut other = Sample::new(1, End::Killed);
    other.volumes[0].models.truncate(1);
    assert!(whole(&other).unwrap_err().contains("never was"));
    let mut other = Sample::new(1, End::Killed);
    other.volumes[0].seen.point.seq += 1;
    assert!(whole(&other).is_err(), "a head is gone, and nothing was set aside");
    // A damage that is named elsewhere is not named.
    let mut files = sample.files.clone();
    let first = sample.names(Place::Segments)[0];
    files.get_mut(first).unwrap()[300] ^= 1;
    let elsewhere = judge::Damaged { files, spots: vec![(&file, 0..=u64::MAX)], cut: true };
    assert!(judge(&sample, elsewhere).is_err());
    // An index that cannot be read would be one that is not healed.
    let index = sample.names(Place::Index)[0];
    let mut files = sample.files.clone();
    files.get_mut(first).unwrap()[300] ^= 1;
    let spots = vec![(index, 0..=u64::MAX)];
    assert!(judge(&sample, judge::Damaged { files, spots, cut: false }).is_err());
}

#[test]
fn damage_is_refused_or_named_and_no_wrong_byte_is_read() {
    let table = run(1, Choice::Sampled(150), 2);
    assert!(table.violations.is_empty(), "{table}");
    // Each outcome that there is was come to: the judge tells them apart.
    for (outcome, name) in Outcome::ALL {
        let some = table.rows.values().any(|row| row.contains_key(&outcome));
        assert!(some, "nothing came to '{name}': {table}");
    }
    println!("{table}");
}
