//! Landlock: files of the store only, no TCP of its own, nothing outside.
//!
//! Owns: one ruleset for three layers, and what the kernel's version of Landlock means for each.
//! Sockets in the file system stay reachable where an address is given with each datagram: the
//! journal and the service manager are told of what happens.

use anyhow::Result;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{LEFT_OUT, Layer, Plan, Standing};

/// What is known here. Newer rights would forbid the sockets named above.
const KNOWN: ABI = ABI::V7;

/// What a store needs of its files: no program is run, no device, pipe, socket or link is made.
fn store_rights() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

/// Enters the ruleset; says what became of each layer.
pub(super) fn enter(plan: &Plan) -> Vec<Standing> {
    let layers = [Layer::Files, Layer::Network, Layer::Scope];
    let wanted = |layer| !plan.without.contains(&layer);
    let version = match layers.iter().any(|layer| wanted(*layer)) {
        true => restrict(plan, &wanted).unwrap_or_else(|e| Err(format!("{e:#}"))),
        false => Err(String::new()),
    };
    let standing = |layer| {
        let held = match &version {
            _ if !wanted(layer) => Err(LEFT_OUT.to_owned()),
            Ok(version) => judge(layer, *version, plan),
            Err(why) => Err(why.clone()),
        };
        Standing { layer, held }
    };
    layers.into_iter().map(standing).collect()
}

/// The version of Landlock under which the rules were taken, or why they were not.
fn restrict(plan: &Plan, wanted: &dyn Fn(Layer) -> bool) -> Result<Result<ABI, String>> {
    let mut rules = Ruleset::default();
    if wanted(Layer::Files) {
        rules = rules.handle_access(AccessFs::from_all(KNOWN))?;
    }
    if wanted(Layer::Network) {
        rules = rules.handle_access(AccessNet::from_all(KNOWN))?;
    }
    if wanted(Layer::Scope) {
        rules = rules.scope(Scope::from_all(KNOWN))?;
    }
    let mut rules = rules.create()?;
    if wanted(Layer::Files) {
        let cleared = plan.cleared.iter().map(|dir| (dir, AccessFs::RemoveFile.into()));
        for (dir, rights) in plan.dirs.iter().map(|dir| (dir, store_rights())).chain(cleared) {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(dir)?, rights))?;
        }
        for dir in &plan.reads {
            let rights = AccessFs::ReadFile | AccessFs::ReadDir;
            rules = rules.add_rule(PathBeneath::new(PathFd::new(dir)?, rights))?;
        }
    }
    if wanted(Layer::Network) {
        for port in &plan.ports {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::NotImplemented => Err("this kernel has no Landlock".into()),
        LandlockStatus::NotEnabled => Err("Landlock is not enabled in this kernel".into()),
        LandlockStatus::Available { .. } if status.ruleset == RulesetStatus::NotEnforced => {
            Err("the kernel did not take the rules".into())
        }
        LandlockStatus::Available { effective_abi, .. } => Ok(effective_abi),
    })
}

/// What a version of Landlock means for a layer.
fn judge(layer: Layer, version: ABI, plan: &Plan) -> Result<String, String> {
    let (least, keeps) = match layer {
        // Older ones let any file be cut.
        Layer::Files => (ABI::V3, "files of the store only, and none of them is run".to_owned()),
        Layer::Network if plan.ports.is_empty() => {
            (ABI::V4, "no TCP connection is made, no port is bound".to_owned())
        }
        Layer::Network => {
            let ports: Vec<String> = plan.ports.iter().map(u16::to_string).collect();
            let to = ports.join(", ");
            (ABI::V4, format!("no TCP connection is made but to port {to}, no port is bound"))
        }
        _ => (ABI::V6, "no signal and no abstract socket leads outside".to_owned()),
    };
    if version < least {
        return Err(format!("this kernel has version {version} of Landlock, and it needs {least}"));
    }
    Ok(format!("{keeps} (version {version})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_holds_what_it_has() {
        let all = [Layer::Files, Layer::Network, Layer::Scope];
        for (version, expected) in [
            (ABI::V1, [false, false, false]),
            (ABI::V2, [false, false, false]),
            (ABI::V3, [true, false, false]),
            (ABI::V4, [true, true, false]),
            (ABI::V5, [true, true, false]),
            (ABI::V6, [true, true, true]),
            (ABI::V7, [true, true, true]),
        ] {
            let held = |layer| judge(layer, version, &Plan::default()).is_ok();
            assert_eq!(all.map(held), expected, "{version}");
        }
    }
}
