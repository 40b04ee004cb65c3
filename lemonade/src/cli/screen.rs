//! How wide and high what stdout goes to is.

use std::io::{self, IsTerminal};

use rustix::termios::tcgetwinsize;

use crate::admin::table::Look;

/// Columns and lines of a terminal that does not tell its own.
const USUAL: (usize, usize) = (80, 24);

/// How to draw on stdout: as wide as a terminal is, or uncut where stdout is none.
pub(super) fn look() -> Look {
    let width = size().map(|(columns, _)| columns);
    Look { width, colours: width.is_some() }
}

/// Lines that fit on stdout at once; `None` where it is no terminal.
pub(super) fn height() -> Option<usize> {
    size().map(|(_, lines)| lines)
}

/// Columns and lines of the terminal at stdout; `COLUMNS` and `LINES` overrule it.
fn size() -> Option<(usize, usize)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let told = tcgetwinsize(io::stdout()).ok();
    let told = told.map_or((0, 0), |size| (size.ws_col.into(), size.ws_row.into()));
    let of = |name: &str, told: usize, usual: usize| {
        let asked = std::env::var(name).ok().and_then(|text| text.trim().parse().ok());
        asked.filter(|size| *size > 0).unwrap_or(if told > 0 { told } else { usual })
    };
    Some((of("COLUMNS", told.0, USUAL.0), of("LINES", told.1, USUAL.1)))
}
