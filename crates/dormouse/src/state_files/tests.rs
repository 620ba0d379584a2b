//! Every fault of a state file, a crash at each step of a change, and going on after.

use std::path::Path;

use super::*;

const KIND: Kind =
    Kind { files: &["top"], dirs: &["keys", "heads"], spare: &["heads"], way_out: "the way out" };

fn tree(dir: &Path) -> StateFiles {
    StateFiles::new(dir.to_owned(), &KIND)
}

/// Files and their contents, without the lock.
type Image = Vec<(String, Vec<u8>)>;

fn image(dir: &Path) -> Image {
    let mut out = Vec::new();
    for sub in ["", "keys", "heads", "set-aside"] {
        let Ok(entries) = std::fs::read_dir(dir.join(sub)) else { continue };
        for path in entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            if name != LOCK {
                out.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}

fn put_back(image: &Image) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in image {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

fn with(image: &Image, name: &str, bytes: Option<&[u8]>) -> Image {
    let mut next: Image = image.iter().filter(|(n, _)| n != name).cloned().collect();
    next.extend(bytes.map(|b| (name.to_owned(), b.to_vec())));
    next
}

fn of<'a>(image: &'a Image, name: &str) -> &'a [u8] {
    &image.iter().find(|(n, _)| n == name).unwrap().1
}

fn whys(image: &Image) -> Vec<(String, Why)> {
    let dir = put_back(image);
    let faults = tree(dir.path()).check().unwrap();
    assert_eq!(tree(dir.path()).must_hold().is_err(), !faults.is_empty());
    let name = |f: &Fault| f.path.strip_prefix(dir.path()).unwrap().display().to_string();
    faults.iter().map(|f| (name(f), f.why.clone())).collect()
}

fn the_fault(image: &Image) -> (String, Why) {
    let mut all = whys(image);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The state after each change of a short history.
fn history() -> Vec<Image> {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    let mut images = Vec::new();
    let steps =
        [("top", "a"), ("keys/k", "secret"), ("heads/v", "1"), ("heads/v", "2"), ("heads/w", "9")];
    for (name, text) in steps {
        state.write(name, text, 0o600).unwrap();
        images.push(image(dir.path()));
    }
    images
}

#[test]
fn files_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    assert!(state.check().unwrap().is_empty());
    assert_eq!(state.read("top").unwrap(), None);
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "reading writes nothing");
    assert!(state.create_new("keys/k", "one\ntwo\n", 0o600).unwrap());
    assert!(!state.create_new("keys/k", "three", 0o600).unwrap());
    state.write("top", "x", 0o644).unwrap();
    assert_eq!(**state.read("keys/k").unwrap().unwrap(), *"one\ntwo");
    assert_eq!(state.view().unwrap().names("keys").unwrap(), ["keys/k"]);
    state.remove("keys/k", |path| std::fs::write(path, "gone").unwrap()).unwrap();
    state.remove("keys/k", |_| panic!("it is not there")).unwrap();
    assert_eq!(state.read("keys/k").unwrap(), None);
    assert!(state.create_new("keys/k", "again", 0o600).unwrap());
    assert!(state.check().unwrap().is_empty());
    let mode = |name| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("keys/k"), mode("top"), mode(MANIFEST)), (0o600, 0o644, 0o600));
}

#[test]
fn each_fault_has_its_name() {
    let images = history();
    let (old, new) = (&images[2], &images[4]);
    assert!(whys(new).is_empty());
    let change = |name: &str, bytes: Option<&[u8]>| the_fault(&with(new, name, bytes));
    let own = |name: &str, why| (name.to_owned(), why);
    let cut = &of(new, "top")[1..];
    assert_eq!(change("top", Some(cut)), own("top", Why::Damaged));
    assert_eq!(change("top", None), own("top", Why::Missing));
    assert_eq!(change("keys/x", Some(cut)), own("keys/x", Why::Stray));
    let is_of = Why::IsOf("heads/w".into());
    assert_eq!(change("heads/v", Some(of(new, "heads/w"))), own("heads/v", is_of));
    let put_back = Why::Old { found: 3, newest: 4 };
    assert_eq!(change("heads/v", Some(of(old, "heads/v"))), own("heads/v", put_back));
    assert_eq!(change(MANIFEST, None), own(MANIFEST, Why::NoManifest));
    assert_eq!(change(MANIFEST, Some(cut)), own(MANIFEST, Why::Damaged));
    let behind = Why::ManifestOld { newest: 5, found: 3 };
    assert_eq!(change(MANIFEST, Some(of(old, MANIFEST))), own(MANIFEST, behind));
    let foreign = history().remove(4);
    assert_eq!(change("top", Some(of(&foreign, "top"))), own("top", Why::OtherTree));
    // Of two copies of one tree, each went on by itself.
    let dir = self::put_back(&images[3]);
    tree(dir.path()).write("heads/w", "other", 0o600).unwrap();
    let mixed = image(dir.path());
    assert_eq!(change("heads/w", Some(of(&mixed, "heads/w"))), own("heads/w", Why::Mixed));
    let newer = String::from_utf8(of(new, MANIFEST).to_vec()).unwrap();
    let (text, _) = newer.rsplit_once("\n# state").unwrap();
    let newer = text.replace("version = 1", "version = 2");
    let sheet = Sheet::read(MANIFEST, of(new, MANIFEST)).unwrap();
    let newer = Sheet::new(sheet.tree, sheet.change, MANIFEST, &newer).render();
    assert_eq!(change(MANIFEST, Some(newer.as_bytes())), own(MANIFEST, Why::Newer(2)));
}

#[test]
fn a_fault_is_an_error_with_a_way_out_and_the_other_files_are_read() {
    let images = history();
    let dir = put_back(&with(&images[4], "heads/v", Some(of(&images[2], "heads/v"))));
    let state = tree(dir.path());
    let error = state.read("heads/v").unwrap_err();
    assert_eq!(class_of(&error), Class::Damaged);
    let text = crate::exit::text_of(&error);
    assert!(text.contains("heads/v: an old version") && text.contains("\n  the way out"), "{text}");
    assert_eq!(**state.read("heads/w").unwrap().unwrap(), *"9");
    // A newer version of it is no part of the damage.
    state.write("heads/v", "3", 0o600).unwrap();
    assert!(state.check().unwrap().is_empty());
}

#[test]
fn a_crash_between_file_and_manifest_is_ended_by_the_next_change() {
    let images = history();
    for (i, pair) in images.windows(2).enumerate() {
        let (old, new) = (&pair[0], &pair[1]);
        let between = with(new, MANIFEST, Some(of(old, MANIFEST)));
        assert!(whys(&between).is_empty(), "step {i}");
        let dir = put_back(&between);
        let state = tree(dir.path());
        // The file counts: it was whole before the crash.
        let changed = ["keys/k", "heads/v", "heads/v", "heads/w"][i];
        let text = ["secret", "1", "2", "9"][i];
        assert_eq!(**state.read(changed).unwrap().unwrap(), *text);
        state.write("top", "after", 0o600).unwrap();
        assert!(state.check().unwrap().is_empty());
        let taken = state.view().unwrap().manifest.unwrap();
        assert_eq!(taken.change, i as u64 + 3, "the cut change, then the new one");
        assert_eq!(taken.files[changed].change, i as u64 + 2);
        // And nothing else counts from then on.
        let after = image(dir.path());
        if old.iter().any(|(n, _)| n == changed) {
            let (_, why) = the_fault(&with(&after, changed, Some(of(old, changed))));
            assert!(matches!(why, Why::Old { .. }), "{why}");
        }
    }
}

#[test]
fn a_crash_while_a_file_is_written_leaves_what_is_swept() {
    let images = history();
    for name in ["keys/k.tmp-77", "top.tmp-77", "manifest.toml.tmp-1"] {
        let dir = put_back(&with(&images[4], name, Some(b"half a se")));
        let state = tree(dir.path());
        assert!(state.check().unwrap().is_empty(), "{name}");
        state.write("heads/v", "3", 0o600).unwrap();
        assert!(!dir.path().join(name).exists(), "{name}");
    }
    let dir = put_back(&with(&images[4], "server.toml.tmp-1", Some(b"not ours")));
    tree(dir.path()).write("heads/v", "3", 0o600).unwrap();
    assert!(dir.path().join("server.toml.tmp-1").exists());
}

#[test]
fn a_crash_before_the_first_file_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    state.put_manifest(&Manifest::new([3; 8])).unwrap();
    assert!(state.check().unwrap().is_empty());
    assert_eq!(state.read("top").unwrap(), None);
    state.write("top", "a", 0o600).unwrap();
    assert_eq!(state.view().unwrap().manifest.unwrap().tree, [3; 8]);
}

#[test]
fn a_crash_at_each_step_of_a_removal() {
    let images = history();
    let dir = put_back(&images[4]);
    tree(dir.path()).remove("keys/k", |_| ()).unwrap();
    let after = image(dir.path());
    // The first manifest of the removal, as it is between its two writes.
    let dir = put_back(&images[4]);
    let state = tree(dir.path());
    let mut manifest = state.manifest().unwrap().unwrap();
    manifest.files.remove("keys/k");
    manifest.change += 1;
    manifest.removing = Some("keys/k".into());
    state.put_manifest(&manifest).unwrap();
    let told = image(dir.path());
    let wiped = with(&told, "keys/k", Some(b"000000"));
    let unlinked = with(&told, "keys/k", None);
    for step in [&told, &wiped, &unlinked] {
        assert!(whys(step).is_empty());
        let dir = put_back(step);
        let state = tree(dir.path());
        assert_eq!(state.read("keys/k").unwrap(), None, "it counts as removed");
        state.write("top", "b", 0o600).unwrap();
        assert!(!dir.path().join("keys/k").exists());
        assert!(state.check().unwrap().is_empty());
    }
    // What was removed does not come back.
    let back = with(&after, "keys/k", Some(of(&images[4], "keys/k")));
    assert_eq!(the_fault(&back), ("keys/k".into(), Why::Stray));
    let dir = put_back(&back);
    assert!(tree(dir.path()).read("keys/k").is_err());
}

#[test]
fn nothing_is_changed_under_an_old_manifest() {
    let images = history();
    let mut mixed = with(&images[4], MANIFEST, Some(of(&images[2], MANIFEST)));
    mixed.sort();
    let dir = put_back(&mixed);
    let state = tree(dir.path());
    assert!(state.write("heads/v", "3", 0o600).is_err());
    assert!(state.remove("top", |_| ()).is_err());
    assert_eq!(image(dir.path()), mixed);
}

#[test]
fn what_holds_is_accepted_and_the_rest_is_kept_aside() {
    let images = history();
    let new = &images[4];
    let mut bad = with(new, "heads/v", Some(b"rot"));
    bad = with(&bad, "heads/w", None);
    bad = with(&bad, "keys/stray", Some(b"?"));
    bad = with(&bad, "top", Some(of(&images[0], "top")));
    let dir = put_back(&bad);
    let state = tree(dir.path());
    let said = state.accept().unwrap();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(state.check().unwrap().is_empty());
    assert_eq!(**state.read("top").unwrap().unwrap(), *"a");
    assert_eq!(state.read("heads/v").unwrap(), None);
    let kept: Vec<_> = image(dir.path()).into_iter().map(|(_, bytes)| bytes).collect();
    assert!(kept.contains(&b"rot".to_vec()) && kept.contains(&b"?".to_vec()));

    for lost in [None, Some(&b"rot"[..]), Some(of(&images[1], MANIFEST))] {
        let dir = put_back(&with(new, MANIFEST, lost));
        let state = tree(dir.path());
        state.accept().unwrap();
        assert!(state.check().unwrap().is_empty());
        assert_eq!(**state.read("heads/w").unwrap().unwrap(), *"9");
        state.write("heads/w", "10", 0o600).unwrap();
        assert!(state.check().unwrap().is_empty());
    }

    let stuck = with(new, "keys/k", Some(b"rot"));
    let dir = put_back(&stuck);
    assert!(tree(dir.path()).accept().is_err());
    assert_eq!(image(dir.path()).len(), stuck.len());
    assert_eq!(the_fault(&image(dir.path())), ("keys/k".into(), Why::Damaged));
}

#[test]
fn an_update_sees_what_is_there_and_may_leave_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = tree(dir.path());
    let newest = |n: u64| {
        state.update("heads/v", 0o600, |old| {
            let old = old.map_or(0, |old| old.parse().unwrap());
            (n > old).then(|| n.to_string())
        })
    };
    for (write, holds) in [(3, "3"), (2, "3"), (3, "3"), (7, "7")] {
        newest(write).unwrap();
        assert_eq!(**state.read("heads/v").unwrap().unwrap(), *holds);
    }
    std::fs::write(dir.path().join("heads/v"), "rot").unwrap();
    newest(1).unwrap();
    assert_eq!(
        **state.read("heads/v").unwrap().unwrap(),
        *"1",
        "what is damaged counts as nothing"
    );
}
