//! What ships beside the program: the units, their settings, the manual.

use std::process::{Command, Stdio};

use clap::{CommandFactory, Parser};
use promptpal_relay::inside::cli::{Cli, Command as Cmd};

use crate::support::{outcome, repository_file};

#[test]
fn the_two_units_differ_in_nothing_but_their_names() {
    let one = repository_file("systemd/promptpal-relay.service");
    let many = repository_file("systemd/promptpal-relay@.service");
    let as_one = many
        .replace("LogsDirectory=promptpal-relay promptpal-relay/%i", "LogsDirectory=promptpal-relay")
        .replace("promptpal-relay/%i", "promptpal-relay")
        .replace(" (%i)", "")
        .replace("EnvironmentFile=/etc", "EnvironmentFile=-/etc");
    let settings = |unit: &str| -> Vec<String> {
        unit.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(settings(&one), settings(&as_one));
    assert!(many.contains("\nLogsDirectory=promptpal-relay promptpal-relay/%i\n"));
    // A relative folder for log files is the instance's own.
    assert!(many.contains("\nWorkingDirectory=/var/log/promptpal-relay/%i\n"));
    assert!(repository_file("systemd/promptpal-relay.env").contains("\n#PROMPTPAL_RELAY_LOG_DIR=.\n"));
}

/// Reads the files only; scripts/systemd-test asks a real systemd about it.
#[test]
fn neither_core_dumps_nor_other_users_get_at_what_the_daemon_knows() {
    for name in ["promptpal-relay.service", "promptpal-relay@.service"] {
        let unit = repository_file(&format!("systemd/{name}"));
        assert!(unit.lines().any(|line| line == "LimitCORE=0"), "{name}");
        // systemd reads its settings as root; the user that the daemon runs as needs no right to them.
        assert!(unit.lines().any(|line| line.starts_with("EnvironmentFile=")), "{name}");
    }
    let postinst = repository_file("packaging/debian/postinst");
    assert!(postinst.contains("install -d -m 750 /etc/promptpal-relay\n") && !postinst.contains("useradd"));
    let manifest = repository_file("Cargo.toml");
    for asset in [r#"promptpal-relay.env", "etc/", "640""#, r#"promptpal-relay.conf", "usr/lib/sysusers.d/""#]
    {
        assert!(manifest.contains(asset), "{asset}");
    }
    let user = repository_file("packaging/sysusers.d/promptpal-relay.conf");
    let unit = repository_file("systemd/promptpal-relay.service");
    let name = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    assert!(user.lines().any(|line| line.starts_with(&format!("u {name} "))), "{user}");
}

/// packaging/manual has the tests of the pages themselves.
#[test]
fn the_manual_is_installed_in_the_section_that_the_units_name() {
    let section = "target/manual/*.8.gz\", \"usr/share/man/man8/\"";
    assert!(repository_file("Cargo.toml").contains(section));
    assert!(repository_file("scripts/package").contains("target/manual/*.8 "));
    for name in [
        "promptpal-relay.service",
        "promptpal-relay@.service",
        "promptpal-relay-replay.service",
        "promptpal-relay-replay.timer",
    ] {
        let unit = repository_file(&format!("systemd/{name}"));
        assert!(unit.contains("\nDocumentation=man:promptpal-relay(8)\n"), "{name}");
    }
}

#[test]
fn the_env_file_and_the_operators_page_name_each_setting_with_its_default() {
    let file = repository_file("systemd/promptpal-relay.env");
    let page = repository_file("docs/operations.md");
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    for argument in command.get_arguments().chain(run.get_arguments()) {
        let (Some(variable), Some(flag)) = (argument.get_env(), argument.get_long()) else { continue };
        let variable = variable.to_str().unwrap();
        assert!(page.contains(&format!("| `--{flag}` |")), "docs/operations.md: --{flag}");
        let lines: Vec<&str> = file.lines().collect();
        let index = lines.iter().position(|line| line.starts_with(&format!("#{variable}=")));
        let index = index.unwrap_or_else(|| panic!("{variable} is not in the file"));
        let value = lines[index].split_once('=').unwrap().1;
        // The program's version changes, and a flag that takes no value has one that clap does not tell.
        let default = argument.get_default_values().first().filter(|_| flag != "user-agent-version");
        let takes_values = argument.get_action().takes_values();
        assert_eq!(
            lines[index - 1].contains("No default"),
            default.is_none() && takes_values,
            "{variable}: {}",
            lines[index - 1]
        );
        if let Some(default) = default.filter(|_| takes_values) {
            assert_eq!(Some(value), default.to_str(), "{variable}");
        }
    }
    // The file names no others.
    for line in file.lines().filter_map(|line| line.strip_prefix("#PROMPTPAL")) {
        let variable = format!("PROMPTPAL{}", line.split('=').next().unwrap());
        let known = command.get_arguments().chain(run.get_arguments()).filter_map(clap::Arg::get_env);
        assert!(known.into_iter().any(|name| name.to_str() == Some(&variable)), "{variable}");
    }
}

#[test]
fn the_service_of_the_replays_runs_a_command_that_there_is_and_nobody_starts_it_unasked() {
    let unit = repository_file("systemd/promptpal-relay-replay.service");
    let setting =
        |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    // As systemd puts the variables in; the drop-in of the example names the webhook.
    let mut command = setting("ExecStart").to_owned();
    let example = unit.lines().find_map(|line| line.strip_prefix("#     Environment=")).unwrap();
    for variable in setting("Environment").split(' ').chain([example]) {
        let (name, value) = variable.split_once('=').unwrap();
        command = command.replace(&format!("${{{name}}}"), value);
    }
    let parsed = Cli::try_parse_from(command.split(' ')).unwrap_or_else(|error| panic!("{command}: {error}"));
    let Cli { command: Cmd::Replay(replay), .. } = parsed else { panic!("{command}") };
    assert!(replay.webhook == Some(1) && replay.failed && replay.yes && replay.since.is_some());
    // Without a webhook the command fails, and says what is missing.
    let error = Cli::try_parse_from(command.replace("--webhook 1", "--webhook=").split(' ')).unwrap_err();
    assert!(error.to_string().contains("--webhook <N>"), "{error}");
    // The same user, settings and fences as the daemon, but for what only the daemon needs.
    let daemon = repository_file("systemd/promptpal-relay.service");
    let missing: Vec<_> = daemon
        .lines()
        .filter(|line| !line.starts_with('#') && !unit.lines().any(|own| own == *line))
        .filter(|line| {
            ![
                "Type=",
                "NotifyAccess=",
                "TimeoutSt",
                "Exec",
                "Watchdog",
                "Restart=",
                "RestartSec=",
                "RestartPrevent",
                "StartLimit",
                "KillMode=",
                "LimitNOFILE=",
                "RestrictAddress",
                "Description=",
                "[Install]",
                "WantedBy=",
            ]
            .iter()
            .any(|other| line.starts_with(other))
        })
        .collect();
    assert_eq!(missing, [""; 0]);
    // Nothing but the timer starts it, and the package enables neither.
    assert!(!unit.contains("[Install]"));
    let manifest = repository_file("Cargo.toml");
    let entry =
        manifest.lines().find(|line| line.contains("unit-name = \"promptpal-relay-replay\"")).unwrap();
    assert!(entry.contains("enable = false, start = false"), "{entry}");
}

/// Asks systemd-analyze about the units; skipped where there is none.
#[test]
fn the_units_are_right_and_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let timer = "promptpal-relay-replay.timer";
    for name in
        ["promptpal-relay.service", "promptpal-relay@.service", "promptpal-relay-replay.service", timer]
    {
        // systemd-analyze fails a unit whose program is missing.
        let unit = repository_file(&format!("systemd/{name}"));
        let unit = unit
            .replace("/usr/bin/promptpal-relay", crate::support::BINARY)
            .replace("/bin/kill", "/bin/true");
        // The user is made by the package; the manual is installed by it.
        let unit = unit.replace("Documentation=man:promptpal-relay(8)\n", "");
        let path = folder.path().join(name.replace("@.", "@test."));
        std::fs::write(&path, unit).unwrap();
        for check in [&["verify", "--man=no"][..], &["security", "--offline=true", "--threshold=15"]] {
            let mut command = Command::new("systemd-analyze");
            if check[0] == "security" && name == timer {
                continue;
            }
            command.args(check).arg(&path).stdin(Stdio::null()).env("SYSTEMD_COLORS", "0");
            if Command::new("systemd-analyze").arg("--version").output().is_err() {
                println!("skipped: there is no systemd-analyze");
                return;
            }
            let (code, out, err) = outcome(command);
            assert!(code == 0, "{check:?}: {out}{err}");
            assert!(check[0] != "verify" || err.trim().is_empty(), "{err}");
        }
    }
}
