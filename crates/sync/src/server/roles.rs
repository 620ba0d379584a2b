//! What a client may do in its vault.
//!
//! Owns: the roles, and what each message needs. Invariant: a role is asked before anything else
//! is looked at, so that who may not learns nothing; a message that is not named here is refused.
//! Nobody has all rights: who appends cannot delete, and who deletes cannot append.
//! Leaves to others: who has which role ([`super::Registry`]).

use dormouse_format::message::{Message, Refusal};
use dormouse_format::seeded::seeded;

use super::{Open, Refused};

/// What a client is. One thing at a time: an administrator's key is another client's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads its vault and appends to it.
    #[default]
    Writer,
    /// Reads its vault.
    Reader,
    /// Reads its vault, and says what of it is kept. Appends nothing.
    Admin,
}

/// What a message needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To read.
    Read,
    /// To append.
    Write,
    /// To change what is kept: retention and deletion.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Writer, Self::Reader, Self::Admin];

    /// Its name, on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether it may.
    pub const fn may(self, need: Need) -> bool {
        matches!(
            (self, need),
            (_, Need::Read) | (Self::Writer, Need::Write) | (Self::Admin, Need::Admin)
        )
    }
}

impl Need {
    const fn doing(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "append",
            Self::Admin => "change what is kept",
        }
    }

    const fn role(self) -> Role {
        match self {
            Self::Read => Role::Reader,
            Self::Write => Role::Writer,
            Self::Admin => Role::Admin,
        }
    }
}

/// What a message needs once its sender is known; `None` if it has no place there.
pub(super) const fn need_of(message: &Message) -> Option<Need> {
    match message {
        Message::ListVolumes
        | Message::ListPoints { .. }
        | Message::GetSmall { .. }
        | Message::GetChunks { .. }
        | Message::GetNode { .. }
        | Message::GetLeaves { .. }
        | Message::GetDeltas { .. } => Some(Need::Read),
        Message::Keep(ask) => Some(if ask.is_read() { Need::Read } else { Need::Admin }),
        Message::CreateVolume { .. }
        | Message::OpenWrite { .. }
        | Message::Have { .. }
        | Message::Put { .. }
        | Message::Barrier
        | Message::Begin { .. }
        | Message::Extents { .. }
        | Message::Commit { .. }
        | Message::Distrust { .. }
        | Message::AskScan => Some(Need::Write),
        _ => None,
    }
}

impl Open {
    /// Refuses what the client's role does not allow.
    pub(super) fn may(&self, need: Need) -> Result<(), Refused> {
        let role = self.client.role;
        if role.may(need) || seeded("role-unchecked") {
            return Ok(());
        }
        let (is, wanted) = (role.name(), need.role().name());
        let text = format!(
            "this client is {is} here, and may not {}; who runs the server can make it {wanted}: \
             dormouse grant STORE {} --role {wanted}",
            need.doing(),
            self.client.name
        );
        Err(Refused::new(Refusal::NotAuthorised, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all_rights() {
        let needs = [Need::Read, Need::Write, Need::Admin];
        let of = |role: Role| needs.map(|need| role.may(need));
        assert_eq!(of(Role::Writer), [true, true, false]);
        assert_eq!(of(Role::Reader), [true, false, false]);
        assert_eq!(of(Role::Admin), [true, false, true]);
        assert_eq!(Role::default(), Role::Writer, "stores of before have no roles");
    }

    #[test]
    fn a_role_is_known_by_its_name() {
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }
}
