//! Files that people keep or edit: recovery kit, writer's file, configuration.
//!
//! What can be read is written, and read again as the same.

use std::fmt::Debug;

use dormouse::access::InviteFile;
use dormouse::fuzzing;
use dormouse::home::ClientFile;
use dormouse::kit::Kit;
use dormouse::store_dir::Config;
use dormouse::text::hex;
use dormouse_crypt::{hash, keys, record};
use dormouse_format::WriterId;
use dormouse_format::record::Kind;
use dormouse_format::vault::Cert;

use crate::Target;
use crate::corpus::{behind, text};
use crate::input::Input;
use crate::targets::text::utf8;
use crate::world::world;

/// Recovery kits.
pub const KIT: Target = Target {
    name: "kit",
    what: "a recovery kit, plain and on paper; raw, and with checks that hold",
    run: kit,
    seeds: || {
        let all = ["kit.txt", "kit_paper.txt"].map(|name| text(name).into_bytes());
        let mut out: Vec<_> = behind(0, all.to_vec()).collect();
        out.extend(behind(1, all.to_vec()));
        for (from, to) in [("laptop", "a b"), ("dormouse://", "dir:/x /y"), ("-1", "-01")] {
            let text = text("kit.txt").replace(from, to);
            out.push([&[1][..], text.as_bytes()].concat());
        }
        out
    },
    len_max: 4096,
};

fn kit(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else { return };
    let Some(typed) = utf8(bytes) else { return };
    let text = if repair & 1 == 1 { repaired(typed) } else { typed.to_owned() };
    let Ok(kit) = Kit::parse(&text) else { return };
    assert!(Kit::parse(&mistyped(&text)).is_err(), "an error of typing is not seen");
    for paper in [false, true] {
        let written = kit.text(paper);
        let back = Kit::parse(&written).expect("a kit that was written can be read");
        assert_eq!(back.text(paper), written);
        assert_eq!(back.text(!paper), kit.text(!paper));
    }
}

/// The same text with another last digit in one check.
fn mistyped(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let of_field = |l: &String| l.trim().to_ascii_uppercase().starts_with("VAULT-");
    for line in lines.iter_mut().filter(|l| of_field(l)) {
        let digit = if line.trim_end().ends_with('0') { "1" } else { "0" };
        let kept = line.trim_end().len().saturating_sub(1);
        *line = format!("{}{digit}", line.get(..kept).unwrap_or_default());
    }
    lines.join("\n")
}

/// The same text with the right check at the end of each line that has one.
fn repaired(text: &str) -> String {
    let line = |line: &str| {
        let parts = || {
            let (label, rest) = line.trim().split_once(char::is_whitespace)?;
            let (name, index) = label.split_once('-')?;
            let name = name.to_ascii_uppercase();
            let (part, _) = rest.rsplit_once('=')?;
            let code = !matches!(name.as_str(), "ADDRESS" | "CLIENT");
            let bare: String = match code {
                true => part.chars().filter(|c| !c.is_whitespace()).collect(),
                false => part.trim().to_owned(),
            };
            let check = fuzzing::kit_check(&name, index.parse().ok()?, &bare);
            Some(format!("{label} {part}={check}"))
        };
        parts().unwrap_or_else(|| line.to_owned())
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Writers' files.
pub const WRITER: Target = Target {
    name: "writer-file",
    what: "a writer's file; raw, and with a certificate that holds",
    run: writer,
    seeds: || {
        let file = text("writer.toml").into_bytes();
        let mut out: Vec<_> = behind(0, vec![file]).collect();
        out.push([&[1, 1, 1, 0][..], b"desk"].concat());
        out.push([&[1, 1, 1, 4][..], b"desk"].concat());
        out.push([&[1, 1, 1, 1, 3, 200][..], b"a\"b\n"].concat());
        out.push([&[1, 0, 255, 255, 255][..], b"x"].concat());
        out
    },
    len_max: 4096,
};

fn writer(data: &[u8]) {
    let mut input = Input::new(data);
    let text = if input.flag() {
        signed_writer(&mut input)
    } else {
        let Some(text) = utf8(input.rest()) else { return };
        text.to_owned()
    };
    let Some(file) = fuzzing::writer_file(&text) else { return };
    let written = fuzzing::writer_file_text(&file).unwrap();
    let back = fuzzing::writer_file(&written).expect("a writer's file that was written");
    assert_eq!(fuzzing::writer_file_text(&back).unwrap(), written);
    let (_, body) = record::check(&file.cert).unwrap();
    let cert = keys::verify_body::<Cert>(&file.authority, body).expect("the authority signed it");
    assert_eq!((cert.trust_group, cert.key), (file.trust_group, file.signing.public()));
    assert_eq!((back.trust_group, back.secrets.epoch), (file.trust_group, file.secrets.epoch));
}

/// A file whose certificate is signed, with fields out of the input.
fn signed_writer(input: &mut Input<'_>) -> String {
    let w = world();
    let (version, epoch, odd) = (input.u8(), input.number(), input.u8());
    let signing = &w.writers[0];
    let cert = Cert {
        vault: w.vault,
        key: w.writers[usize::from(odd & 1)].public(),
        trust_group: input.number() as u32,
        issued: input.number(),
        name: "x".into(),
    };
    let signer = if odd & 4 == 0 { &w.authority } else { signing };
    let body = signer.sign_body(&cert);
    let kind = if odd & 2 == 0 { Kind::Cert } else { Kind::Volume };
    let mut whole = record::plain(kind, WriterId::ZERO, &body);
    whole.truncate(whole.len() - usize::from(odd >> 7));
    let name = String::from_utf8_lossy(input.rest()).into_owned();
    let identity = dormouse::fuzzing::writer_file(&text("writer.toml")).unwrap();
    format!(
        "# {}\nformat = \"dormouse writer\"\nversion = {version}\nauthority = \"{}\"\n\
         recipient = \"{}\"\nepoch = {epoch}\nvault_keys = \"{}\"\nwriter_key = \"{}\"\n\
         certificate = \"{}\"\n",
        name.replace('\n', " "),
        w.authority.public(),
        identity.recipient,
        hex(&w.secrets.to_bytes()[..]),
        hex(signing.seed()),
        hex(&whole),
    )
}

/// Configuration of server and client.
pub const CONFIG: Target = Target {
    name: "config",
    what: "server.toml, client.toml, clients/*.toml, invites/*.toml, dormouse-store",
    run: config,
    seeds: config_seeds,
    len_max: 2048,
};

/// Read, written, read again.
fn again<T>(text: &str) -> Option<T>
where
    T: for<'a> serde::Deserialize<'a> + serde::Serialize + PartialEq + Debug,
{
    let value: T = toml::from_str(text).ok()?;
    let written = toml::to_string(&value).unwrap();
    assert_eq!(toml::from_str::<T>(&written).as_ref(), Ok(&value));
    Some(value)
}

fn config(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    let Some(text) = utf8(bytes) else { return };
    match what % 5 {
        0 => drop(again::<Config>(text)),
        1 => drop(again::<ClientFile>(text)),
        2 => {
            let Some(known) = fuzzing::client_file("laptop", text) else { return };
            let table: toml::Table = toml::from_str(text).unwrap();
            assert_eq!(known.revoked.is_some(), table.contains_key("revoked"), "revoked");
            let written = fuzzing::client_file_text(&known).unwrap();
            assert_eq!(fuzzing::client_file("laptop", &written), Some(known));
        }
        3 => {
            let Some(invite) = again::<InviteFile>(text) else { return };
            assert!(invite.expired(u64::MAX), "no invite lasts for ever");
        }
        _ => drop(fuzzing::store_header(text)),
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let id = "5a".repeat(32);
    let client = format!(
        "target = \"dormouse://h:1\"\nserver = \"{id}\"\nclient = \"laptop\"\nvault = \"{id}\"\n\
         authority = \"{id}\"\nrecipient = \"age1x\"\nepoch = 1\ntrust_group = 0\n\
         kit_exported = \"2026-11-20T10:00:00Z\"\n"
    );
    let known = format!(
        "key = \"{id}\"\nvault = \"{id}\"\nwriter = \"{}\"\ncreated = \"2026-11-20T10:00:00Z\"\n",
        &id[..32]
    );
    let invite = format!(
        "name = \"laptop\"\nverifier = \"{id}\"\ncreated = \"2026-11-20T10:00:00Z\"\n\
         expires = \"2026-11-21T10:00:00Z\"\n"
    );
    let revoked = format!("{known}revoked = \"2026-11-20T10:00:00.5Z\"\n");
    let used = format!("{invite}used_by = \"{id}\"\nused = \"x\"\n");
    let all: [(u8, &str); 10] = [
        (0, "url = \"h:1\"\nlisten = \"[::]:7447\"\n"),
        (0, "port = 1\n"),
        (1, &client),
        (2, &known),
        (2, &revoked),
        (3, &invite),
        (3, &used),
        (4, "format = \"dormouse store\"\nversion = 1\n"),
        (4, "format = \"cheese\"\nversion = 2\n"),
        (4, "format = \"dormouse store\"\nversion = 4294967296\n"),
    ];
    let mut out: Vec<_> =
        all.iter().flat_map(|(n, text)| behind(*n, vec![text.as_bytes().to_vec()])).collect();
    out.push([&[2][..], hash::body_check(b"x").as_slice()].concat());
    out
}
