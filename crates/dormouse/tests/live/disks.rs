//! A disk is known by what it is, not by what it is called.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::common::loops::Loop;
use crate::stand::{SIZE, Stand, sh, until};

/// Another disk of the same size, with a file system of its own.
fn another(stand: &Stand) -> std::path::PathBuf {
    let image = stand.image.with_file_name("another");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    sh(&format!("mke2fs -q -F -t ext4 {}", image.display()));
    image
}

fn newest(stand: &Stand) -> u64 {
    let points = stand.place.run(&["points", &stand.volume, "--all", "--json"]).ok().json();
    points.as_array().unwrap().iter().map(|p| p["point"].as_u64().unwrap()).max().unwrap()
}

#[test]
fn a_disk_that_has_another_name_is_found_and_another_one_is_not_copied() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.umount();
    stand.comes_back();
    stand.stop();
    let (own, old_name, another) = (stand.image.clone(), stand.device.clone(), another(&stand));

    // Its name is another disk's now, and it is there under another one.
    stand.plug(&old_name.clone(), &another);
    let Some(moved) = Loop::attach(&own, &[]) else { return };
    File::options().write(true).open(&own).unwrap().write_all_at(&[9; 8192], 50 << 20).unwrap();
    stand.image = own.clone();
    stand.start(&[]);
    stand.comes_back();
    let told = format!("is {} now", moved.0.display());
    assert!(stand.log().contains(&told), "{}", stand.log());
    assert_eq!(stand.status().unwrap()["device"], moved.0.to_str().unwrap());
    let file = stand.place.path("mirror.toml");
    let (device, volume) = (old_name.display(), &stand.volume);
    let text = format!("[[mirror]]\ndevice = \"{device}\"\nvolume = \"{volume}\"\n");
    std::fs::write(&file, text).unwrap();
    let check = |stand: &Stand| stand.place.run(&["check", file.to_str().unwrap()]);
    let said = check(&stand).ok();
    assert!(said.out.contains(&told), "{said:?}");
    // Nobody had watched it there.
    assert_eq!(stand.scans().len(), 2, "{}", stand.log());
    stand.stop();
    drop(moved);

    // Only the other one is there.
    let said = check(&stand);
    assert!(said.out.contains("another disk"), "{said:?}");
    said.fails(8, &["cannot start"]);
    let before = newest(&stand);
    for more in [&[][..], &["--once"], &["--tracker", "scan"]] {
        let said = stand.place.run(&stand.mirror(more));
        said.fails(8, &["another disk", own.to_str().unwrap(), "--same-disk"]);
    }
    assert_eq!(newest(&stand), before, "something of another disk was copied");

    // It is meant; from then on it is the one.
    stand.image = another;
    stand.start(&["--same-disk"]);
    stand.comes_back();
    stand.stop();
    stand.start(&[]);
    stand.is_live();
    stand.stop();
    stand.plug(&old_name, &own);
    stand.place.run(&stand.mirror(&[])).fails(8, &["another disk"]);
}

/// What lies on a disk may change while it is watched, and is known then.
#[test]
fn what_was_watched_may_be_made_anew() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.umount();
    let known = |stand: &Stand| {
        let disks = std::fs::read_dir(stand.place.path("home/disks")).unwrap();
        let texts = disks.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap());
        texts.collect::<Vec<_>>().concat()
    };
    let before = known(&stand);
    assert!(before.contains(&format!("loop {}", stand.image.display())), "{before}");
    assert!(before.contains("ext4 ") && before.contains(&format!("size {SIZE}")), "{before}");
    stand.kill();
    sh(&format!("mkswap {}", stand.device.display()));
    stand.start(&[]);
    stand.is_live();
    stand.comes_back();
    until("it is known by what lies on it now", || known(&stand).contains("swap "));
    assert!(!known(&stand).contains("ext4 "));
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}
