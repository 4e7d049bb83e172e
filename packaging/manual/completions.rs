//! The completions of bash, zsh and fish.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// The program, and the name of its completions.
const NAME: &str = "promptpal-relay";

/// Writes one file for each shell.
///
/// # Errors
///
/// What the system says, and a completion for bash that completes nothing after a command.
pub(crate) fn write(command: &mut Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let path = clap_complete::generate_to(shell, command, NAME, folder)?;
        if shell == Shell::Bash {
            fs::write(&path, mended(&fs::read_to_string(&path)?)?)?;
        }
    }
    Ok(())
}

/// The completion for bash with the right names of its cases. `clap_complete` 4.6 chooses a case by `promptpal__relay__subcmd__run`
/// and labels it `promptpal__subcmd__relay__subcmd__run`: it takes the hyphen of the program's name for the border of a command.
///
/// # Errors
///
/// When a case that is chosen has no label: then another version of `clap_complete` writes other names.
fn mended(script: &str) -> Result<String, String> {
    let wrong = format!("{}__subcmd__", NAME.replace('-', "__subcmd__"));
    let right = format!("{}__subcmd__", NAME.replace('-', "__"));
    let script = script.replace(&wrong, &right);
    let chosen =
        script.lines().filter_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix('"')).skip(1);
    for case in chosen.filter(|case| !case.is_empty()) {
        if !script.lines().any(|line| line.trim().strip_suffix(')') == Some(case)) {
            return Err(format!("the completion for bash chooses the case {case} and does not have it"));
        }
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use clap::CommandFactory;
    use promptpal_relay::inside::cli::Cli;

    use super::*;

    /// The settings of an interactive zsh in a terminal of its own. It prints what its completion adds, and then ends.
    const ZSHRC: &str = r#"
        PS1=
        fpath=($FOLDER $fpath)
        autoload -U compinit
        compinit -u -D
        zstyle ':completion:*' insert-tab false
        compadd() {
            local -a words
            if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)* ]]; then
                builtin compadd -A words "$@"
                print -rl -- '' $words
            fi
            builtin compadd "$@"
        }
        comppostfuncs=(exit)
    "#;

    /// What the shell proposes for a line, one word a line; none where the shell is not installed.
    fn proposed(shell: &str, script: &str, folder: &Path) -> Option<String> {
        let done = Process::new(shell)
            .args(["-c", script])
            .env("FOLDER", folder)
            .env("HOME", folder)
            .current_dir(folder)
            .output();
        let Ok(done) = done else {
            println!("skipped: there is no {shell}");
            return None;
        };
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && err.is_empty(), "{shell}: {err}");
        Some(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn in_folder(test: impl Fn(&Path)) {
        let folder = tempfile::tempdir().expect("a folder");
        write(&mut Cli::command(), folder.path()).expect("the completions");
        fs::write(folder.path().join(".zshrc"), ZSHRC).expect("the settings of zsh");
        test(folder.path());
    }

    /// What each shell must propose for `line`, whose last word is empty or begun.
    fn expect(folder: &Path, line: &str, all: &[&str], none: &[&str]) {
        let last = line.rsplit(' ').next().unwrap_or_default();
        let before = line.split(' ').rev().nth(1).unwrap_or_default();
        let bash = format!(
            ". \"$FOLDER/promptpal-relay.bash\"; COMP_WORDS=({} '{last}'); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _promptpal__relay promptpal-relay '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            &line[..line.len() - last.len()],
        );
        let fish = format!("source $FOLDER/promptpal-relay.fish; complete -C '{line}'");
        let zsh = format!(
            "zmodload zsh/zpty; ZDOTDIR=$FOLDER zpty shell zsh -i; zpty -n -w shell '{line}'$'\\t'; \
             while zpty -r shell seen; do print -r -- \"$seen\"; done"
        );
        for (shell, script) in [("bash", bash), ("fish", fish), ("zsh", zsh)] {
            let Some(proposed) = proposed(shell, &script, folder) else { continue };
            let words: Vec<&str> = proposed.split_whitespace().collect();
            for word in all {
                assert!(words.contains(word), "{shell}: {line}: {word} is not among {proposed}");
            }
            for word in none {
                assert!(!words.contains(word), "{shell}: {line}: {word} is among {proposed}");
            }
        }
    }

    #[test]
    fn each_shell_completes_the_flags_of_a_command_and_the_words_that_a_flag_takes() {
        in_folder(|folder| {
            expect(folder, "promptpal-relay ca", &["calls"], &["--webhook"]);
            expect(
                folder,
                "promptpal-relay calls --",
                &["--webhook", "--follow", "--log-level"],
                &["--workers"],
            );
            expect(folder, "promptpal-relay send-test --", &["--webhook", "--wait"], &["--follow"]);
            expect(
                folder,
                "promptpal-relay run --after-crash ",
                &["resend", "record"],
                &["text", "--workers"],
            );
        });
    }

    #[test]
    fn a_case_without_its_label_is_an_error() {
        let script =
            "cmd=\"\"\ncmd=\"promptpal__relay\"\ncmd=\"promptpal__relay__subcmd__run\"\npromptpal__relay)\n";
        assert!(mended(script).is_err());
        assert!(mended(&format!("{script}promptpal__subcmd__relay__subcmd__run)\n")).is_ok());
    }
}
