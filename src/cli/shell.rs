//! completions, man: made from the grammar itself.

use std::path::Path;

use clap_complete::Shell;

use crate::cli::args::grammar;
use crate::cli::output::Output;
use crate::control::Failure;

pub(crate) fn completions(output: Output, shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar(), "secretfs", &mut script);
    output.raw(&script)
}

pub(crate) fn man(output: Output, folder: Option<&Path>) -> Result<(), Failure> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(grammar())
            .render(&mut page)
            .map_err(|error| Failure::failed(error.to_string()))?;
        return output.raw(&page);
    };
    clap_mangen::generate_to(grammar(), folder).map_err(|error| {
        Failure::failed(format!(
            "{}: {error}: name a folder that you may write to",
            folder.display()
        ))
    })
}
