//! The config: every error is one line that names the file, and no rule lets everybody in.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use secretfs::caller::{Caller, Cgroup};
use secretfs::config::accounts::Listed;
use secretfs::config::subuid::Subuids;
use secretfs::config::{Account, Config};
use secretfs::fs::Catalogue;
use secretfs::policy::{Decision, Rule};
use secretfs::secret::SecretPath;
use secretfs::sys::{Gid, Tid, Uid};

fuzz_target!(|text: &str| {
    let account = |name: &str, id| Account {
        name: name.to_owned(),
        uid: Uid(id),
        gid: Gid(id),
    };
    let accounts = Listed {
        users: vec![account("secretfs", 990), account("billing", 1000)],
        groups: vec![("ops".to_owned(), Gid(2000))],
        subuids: Subuids::parse(b"billing:100000:65536\ncontainers:0:4294967295\n"),
    };
    let config = match Config::parse_with(text, Path::new("config.toml"), &accounts) {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.0.is_empty());
            for error in &errors.0 {
                let line = error.to_string();
                assert!(
                    line.starts_with("config.toml:") && !line.contains('\n'),
                    "{line:?}"
                );
                let lines = text.lines().count() + 1;
                assert!(
                    error.line.is_none_or(|line| (1..=lines).contains(&line)),
                    "{line:?}"
                );
            }
            return;
        }
    };
    let (policy, unknown) = config.policy(&accounts);
    let services = policy.services.values().chain(&policy.defaults);
    let rules = services.flat_map(|service| {
        let own = service.secrets.values().flatten();
        service.allow.iter().chain(&service.manage).chain(own)
    });
    for Rule {
        uids, gids, name, ..
    } in rules.chain(&policy.manage)
    {
        assert!(uids.is_some() || gids.is_some(), "{name}");
    }
    assert!(unknown.is_empty() || text.len() > 10);
    let catalogue = Catalogue::new(&config, &accounts);
    // Somebody whom no config names: no number is that large.
    let nobody = Caller {
        groups: Some(Vec::new()),
        cgroup: Some(Cgroup::default()),
        ..Caller::new(Uid(u32::MAX), Gid(u32::MAX), Tid(1))
    };
    for service in catalogue.services() {
        for name in catalogue.bound_names(service) {
            let path = SecretPath {
                service: service.clone(),
                name,
            };
            assert!(!matches!(
                policy.check(&nobody, &path),
                Decision::Undecided(_)
            ));
            assert!(
                !matches!(policy.check(&nobody, &path), Decision::Allowed(_)),
                "{path}"
            );
            let binding = catalogue.binding(&path).unwrap();
            for reference in &binding.references {
                assert!(config.backends.contains_key(&reference.backend));
                assert!(catalogue.paths_from(reference).contains(&path));
            }
        }
    }
});
