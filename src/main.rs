//! The program. All of it is in [`cli`]: arguments, one match over the verbs, what errors look like.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
