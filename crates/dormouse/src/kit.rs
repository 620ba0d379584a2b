//! The recovery kit: what brings everything back after the loss of every client.
//!
//! Owns: its text, made for paper. Invariant: each line that can be mistyped
//! carries a checksum, so that an error is found and its line is named.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use dormouse_crypt::{Identity, SigningKey, hash};
use dormouse_format::vault::name_is_valid;
use zeroize::Zeroizing;

use crate::connect::Target;
use crate::exit::{Class, Failure, fail};
use crate::files;
use crate::home::Home;
use crate::text::{hex, now_ns, time_utc, unhex_array};

const TITLE: &str = "DORMOUSE RECOVERY KIT 1";
/// Characters of the checksum at the end of a line.
const CHECK: usize = 4;

/// What a kit holds.
#[derive(Debug)]
pub struct Kit {
    /// The vault's authority.
    pub authority: SigningKey,
    /// The vault's identity.
    pub identity: Identity,
    /// Where the server is.
    pub target: Target,
    /// Fingerprint of its key.
    pub server: [u8; 32],
    /// The client that made the kit.
    pub client: String,
}

/// One field: its name and up to how many characters stand on a line.
const FIELDS: [(&str, usize); 6] = [
    ("AUTHORITY", 32),
    ("IDENTITY", 38),
    ("ADDRESS", 60),
    ("SERVER", 32),
    ("VAULT", 32),
    ("CLIENT", 64),
];

/// The check of one line.
pub(crate) fn check(name: &str, index: usize, part: &str) -> String {
    // Case and spaces do not count, except in an address.
    let part = if name == "ADDRESS" || name == "CLIENT" {
        part.to_owned()
    } else {
        part.to_ascii_uppercase()
    };
    let input = Zeroizing::new(format!("kit {name} {index} {part}"));
    hex(&hash::body_check(input.as_bytes()))[..CHECK].to_ascii_uppercase()
}

fn is_code(name: &str) -> bool {
    name != "ADDRESS" && name != "CLIENT"
}

/// A value in parts of up to `width` characters. Spaces at the ends of a line are lost, so no
/// part ends where the next begins with a space, or with one.
fn parts(value: &str, width: usize) -> Vec<Zeroizing<String>> {
    let chars: Zeroizing<Vec<char>> = Zeroizing::new(value.chars().collect());
    let mut out = Vec::new();
    let mut rest = &chars[..];
    while !rest.is_empty() {
        let inside = |end: &usize| !rest[end - 1].is_whitespace() && !rest[*end].is_whitespace();
        let end = match rest.len() <= width {
            true => rest.len(),
            false => (1..=width).rev().find(inside).unwrap_or(width),
        };
        let (part, after) = rest.split_at(end);
        out.push(Zeroizing::new(part.iter().collect()));
        rest = after;
    }
    out
}

/// Whether an address can stand in a kit: no line break, and no part that would lose a space.
fn can_stand(address: &str) -> bool {
    let width = FIELDS[2].1;
    !address.chars().any(char::is_control)
        && parts(address, width).iter().all(|part| part.trim() == part.as_str())
}

impl Kit {
    /// The kit of a home that has authority and identity.
    pub fn of(home: &Home) -> Result<Self> {
        let account = home.account()?;
        let address = account.target.to_string();
        if !can_stand(&address) {
            return fail(
                Class::Place,
                format!(
                    "{address:?} cannot stand in a recovery kit: its line breaks or spaces would be lost"
                ),
                "give the store's directory a plainer name, and join it again under that",
            );
        }
        Ok(Self {
            authority: home.authority()?,
            identity: home.identity()?,
            target: account.target,
            server: account.server,
            client: account.name,
        })
    }

    fn fields(&self) -> [(&'static str, Zeroizing<String>); 6] {
        let vault = hash::vault_id(&self.authority.public());
        [
            ("AUTHORITY", Zeroizing::new(hex(self.authority.seed()))),
            ("IDENTITY", self.identity.to_secret()),
            ("ADDRESS", Zeroizing::new(self.target.to_string())),
            ("SERVER", Zeroizing::new(hex(&self.server))),
            ("VAULT", Zeroizing::new(vault.to_string())),
            ("CLIENT", Zeroizing::new(self.client.clone())),
        ]
    }

    /// The kit's text; `paper` writes codes in capitals, in groups of four.
    pub fn text(&self, paper: bool) -> Zeroizing<String> {
        let mut out = Zeroizing::new(format!("{TITLE}\n\n"));
        out.push_str(
            "With this kit and the server, everything comes back. Who has it can read\n\
             everything: keep it offline, in a safe place, apart from the machine.\n\n\
             Each line ends with '=' and a check of that line. Case and spaces in codes\n\
             do not matter. To come back, on any machine, with this text in a file:\n\
             \x20   dormouse join --kit FILE\n\n",
        );
        for ((name, value), (_, width)) in self.fields().iter().zip(FIELDS) {
            for (index, part) in parts(value, width).into_iter().enumerate() {
                let index = index + 1;
                let shown = if paper && is_code(name) { grouped(&part) } else { part.clone() };
                let label = format!("{name}-{index}");
                let check = check(name, index, &part);
                let _ = writeln!(out, "{label:<12} {} ={check}", *shown);
            }
        }
        out
    }

    /// Reads a kit that may have been typed by hand.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().map(str::trim).enumerate();
        let title = lines.find(|(_, l)| !l.is_empty()).map_or("", |(_, l)| l);
        if !title.eq_ignore_ascii_case(TITLE) {
            let newer = title.to_ascii_uppercase().starts_with("DORMOUSE RECOVERY KIT");
            let class = if newer { Class::Version } else { Class::Place };
            return fail(
                class,
                format!("this is not a recovery kit: it does not begin with '{TITLE}'"),
                "`dormouse recovery-kit FILE` writes one",
            );
        }
        let mut values: [Zeroizing<String>; 6] = Default::default();
        let mut counts = [0; 6];
        for (number, line) in lines {
            let Some((label, rest)) = line.split_once(char::is_whitespace) else { continue };
            let label = label.to_ascii_uppercase();
            let Some((name, index)) = label.split_once('-') else { continue };
            let Some(field) = FIELDS.iter().position(|(n, _)| *n == name) else { continue };
            let wrong = |why: &str| {
                Failure::new(
                    Class::Place,
                    format!("line {} of the kit ({label}): {why}", number + 1),
                )
                .hint("compare that line with the paper, letter by letter")
            };
            let (part, sum) = rest.rsplit_once('=').ok_or_else(|| wrong("its check is missing"))?;
            let code = is_code(name);
            let part = Zeroizing::new(if code {
                part.chars().filter(|c| !c.is_whitespace()).collect()
            } else {
                part.trim().to_owned()
            });
            if index.parse() != Ok(counts[field] + 1) {
                return Err(wrong("a line before it is missing, or stands twice").into());
            }
            counts[field] += 1;
            if check(name, counts[field], &part) != sum.trim().to_ascii_uppercase() {
                return Err(wrong("it is mistyped (its check does not hold)").into());
            }
            values[field].push_str(&part);
        }
        Self::from_values(&values)
    }

    fn from_values(values: &[Zeroizing<String>; 6]) -> Result<Self> {
        let bad = |i: usize| {
            let name = FIELDS[i].0;
            Failure::new(Class::Place, format!("the kit's {name} is missing or not whole"))
                .hint("compare it with the paper, line by line")
        };
        let [authority, identity, address, server, vault, client] = values;
        let seed = Zeroizing::new(unhex_array::<32>(authority).ok_or_else(|| bad(0))?);
        let kit = Self {
            authority: SigningKey::from_seed(*seed)?,
            identity: identity.to_ascii_uppercase().parse().map_err(|_| bad(1))?,
            target: address.parse().map_err(|_| bad(2))?,
            server: unhex_array(server).ok_or_else(|| bad(3))?,
            client: client.to_string(),
        };
        if !vault.eq_ignore_ascii_case(&hash::vault_id(&kit.authority.public()).to_string()) {
            return Err(bad(4).into());
        }
        if !can_stand(&kit.target.to_string()) {
            return Err(bad(2).into());
        }
        if !name_is_valid(&kit.client) {
            return Err(bad(5).into());
        }
        Ok(kit)
    }

    /// Reads a kit from a file, or from standard input if it is `-`.
    pub fn load(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            let mut text = Zeroizing::new(String::new());
            let input = std::io::Read::take(std::io::stdin(), 64 << 10);
            std::io::Read::read_to_string(&mut { input }, &mut text)?;
            return Self::parse(&text);
        }
        let Some(text) = files::read_text(path)?.map(Zeroizing::new) else {
            return fail(
                Class::KeyMissing,
                format!("there is no file {}", path.display()),
                "type the kit from paper into a file, and name that",
            );
        };
        Self::parse(&text)
    }
}

fn grouped(code: &str) -> Zeroizing<String> {
    let chars: Vec<char> = code.to_ascii_uppercase().chars().collect();
    let groups: Vec<String> = chars.chunks(4).map(|g| g.iter().collect()).collect();
    Zeroizing::new(groups.join(" "))
}

/// Writes the kit to a file or to standard output, and remembers that there is one.
pub fn export(home: &Home, file: Option<&Path>, paper: bool, offline: bool) -> Result<()> {
    let to_screen = file.is_none_or(|f| f == Path::new("-"));
    if offline && to_screen {
        return fail(
            Class::Usage,
            "--offline needs a FILE: the kit is read back before keys are removed",
            "dormouse recovery-kit FILE --offline",
        );
    }
    let _lock = home.lock()?;
    let kit = Kit::of(home)?;
    let text = kit.text(paper);
    // What is printed must be what brings the vault back.
    Kit::parse(&text)?;
    match file {
        Some(path) if !to_screen => {
            if !files::create_new(path, text.as_bytes(), 0o600)? {
                return fail(
                    Class::Place,
                    format!("{} exists already", path.display()),
                    "name a new file",
                );
            }
            let back = Kit::load(path)?;
            if back.text(paper) != text {
                return fail(
                    Class::Damaged,
                    format!("{} does not read back as it was written", path.display()),
                    "write the kit to another disk; no key was removed",
                );
            }
        }
        _ => crate::out::write(text.as_bytes())?,
    }
    home.change_client_file(|f| f.kit_exported = Some(time_utc(now_ns())))?;
    if offline {
        home.remove_offline_keys()?;
    }
    Ok(())
}

/// What `status` and `mirror` say while no kit was written.
pub fn kit_reminder(home: &Home) -> Option<String> {
    let file = home.client_file().ok()?;
    if file.kit_exported.is_some() {
        return None;
    }
    Some(
        "no recovery kit was written: if this machine is lost, its copies cannot be opened.\n  \
         Run `dormouse recovery-kit FILE` and keep the file somewhere else."
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            authority: SigningKey::from_seed([7; 32]).unwrap(),
            identity: Identity::generate(),
            target: "dormouse://backup.example.org:7447".parse().unwrap(),
            server: [0xc3; 32],
            client: "laptop".into(),
        }
    }

    /// A committed example (docs/format.md, 'Recovery kit'): a change is a change of the format.
    #[test]
    fn the_committed_kits_are_read_and_written() {
        let hex_identity: String =
            include_str!("../../../testdata/vectors/age_identity.txt").lines().skip(1).collect();
        let identity = String::from_utf8(crate::text::unhex(&hex_identity).unwrap()).unwrap();
        let kit = Kit {
            authority: SigningKey::from_seed([0x11; 32]).unwrap(),
            identity: identity.parse().unwrap(),
            ..kit()
        };
        let plain = include_str!("../../../testdata/text/kit.txt");
        let paper = include_str!("../../../testdata/text/kit_paper.txt");
        for (text, on_paper) in [(plain, false), (paper, true)] {
            assert_eq!(*kit.text(on_paper), text);
            let back = Kit::parse(text).unwrap();
            assert_eq!(back.authority.seed(), &[0x11; 32]);
            assert_eq!(*back.identity.to_secret(), identity);
            assert_eq!(back.target.to_string(), "dormouse://backup.example.org:7447");
            assert_eq!((back.server, back.client.as_str()), ([0xc3; 32], "laptop"));
        }
        let newer = Kit::parse(&plain.replace("KIT 1", "KIT 2")).unwrap_err();
        assert_eq!(crate::exit::class_of(&newer), Class::Version);
    }

    #[test]
    fn round_trip_on_screen_and_paper() {
        let kit = kit();
        for paper in [false, true] {
            let text = kit.text(paper);
            assert!(text.lines().count() < 40, "{}", *text);
            assert!(text.lines().all(|l| l.chars().count() <= 76), "{}", *text);
            let typed = text.replace("=", " = ").to_string();
            for text in [text.to_string(), typed, format!("\n\n{}", *text)] {
                let back = Kit::parse(&text).unwrap();
                assert_eq!(back.text(paper), kit.text(paper));
            }
        }
        let lower = kit
            .text(true)
            .lines()
            .map(|l| if l.starts_with("AUTH") { l.to_lowercase() } else { l.to_owned() })
            .collect::<Vec<_>>()
            .join("\n");
        assert!(Kit::parse(&lower).is_ok());
    }

    #[test]
    fn a_space_in_a_long_address_survives() {
        for before in 50..70 {
            let target = format!("dir:/{} / {}", "a".repeat(before), "b".repeat(80));
            let kit = Kit { target: target.parse().unwrap(), ..kit() };
            assert_eq!(Kit::parse(&kit.text(true)).unwrap().target.to_string(), target);
        }
    }

    #[test]
    fn an_address_that_would_lose_spaces_cannot_stand() {
        for bad in ["dir:/x ", "dir:/x\ny", &format!("dir:/x{}y", " ".repeat(60)), &"a ".repeat(40)]
        {
            assert!(!can_stand(bad), "{bad:?}");
        }
        assert!(can_stand("dir:/a b/c"));
        let long = Kit { target: format!("dir:/x{}y", " ".repeat(99)).parse().unwrap(), ..kit() };
        assert!(Kit::parse(&long.text(false)).is_err());
        let odd = Kit { client: "a b".into(), ..kit() };
        assert!(Kit::parse(&odd.text(false)).is_err());
    }

    #[test]
    fn a_typing_error_names_its_line() {
        let text = kit().text(true).to_string();
        for (number, line) in text.lines().enumerate() {
            let Some(label) = line.split_once(' ').map(|(l, _)| l.to_owned()) else { continue };
            if !FIELDS.iter().any(|(n, _)| label.starts_with(&format!("{n}-"))) {
                continue;
            }
            let end = line.rfind('=').unwrap();
            for at in 13..end - 1 {
                let with = if &line[at..=at] == "5" { "6" } else { "5" };
                if &line[at..=at] == " " {
                    continue;
                }
                let bad = format!("{}{with}{}", &line[..at], &line[at + 1..]);
                let all = text.replace(line, &bad);
                let error = Kit::parse(&all).unwrap_err().to_string();
                assert!(
                    error.contains(&label) && error.contains(&format!("line {}", number + 1)),
                    "{error}"
                );
            }
            assert!(Kit::parse(&text.replace(&format!("{line}\n"), "")).is_err(), "{line}");
        }
        assert!(Kit::parse("hello").is_err());
    }
}
