//! Tables for people, 100 columns wide.

use bytesize::ByteSize;

use super::words::clean;

/// Widest line of a table, in characters.
pub(crate) const WIDTH: usize = 100;

/// Narrowest that a column of text is cut to.
const NARROWEST: usize = 6;

/// A column of a table.
pub(crate) struct Column {
    title: &'static str,
    number: bool,
}

impl Column {
    /// Of words, to the left; cut where the table is too wide.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self { title, number: false }
    }

    /// Of numbers, to the right.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title, number: true }
    }
}

/// A row of a table.
pub(crate) struct Row {
    /// A text for each column.
    pub(crate) cells: Vec<String>,
    /// Whether it is painted as trouble.
    pub(crate) bad: bool,
    /// A line of its own below.
    pub(crate) note: Option<String>,
}

/// Draws a table.
pub(crate) fn table(columns: &[Column], rows: Vec<Row>, colours: bool, out: &mut String) {
    let title =
        Row { cells: columns.iter().map(|column| column.title.to_owned()).collect(), bad: false, note: None };
    let mut rows: Vec<Row> = std::iter::once(title).chain(rows).collect();
    for cell in rows.iter_mut().flat_map(|row| &mut row.cells) {
        *cell = clean(cell);
    }
    let longest = |at: usize| rows.iter().map(|row| row.cells[at].chars().count()).max().unwrap_or_default();
    let mut widths: Vec<usize> = (0..columns.len()).map(longest).collect();
    narrow(columns, &mut widths);
    for row in &rows {
        let mut line = String::new();
        for ((cell, column), width) in row.cells.iter().zip(columns).zip(&widths) {
            let cell = cut(cell, *width);
            let padded =
                if column.number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            line.push_str(&padded);
        }
        let note = row.note.as_deref().map(|note| cut(&clean(note), WIDTH));
        for line in std::iter::once(line.trim_end().to_owned()).chain(note) {
            out.push_str(&if row.bad { painted(line, colours) } else { line });
            out.push('\n');
        }
    }
}

/// Takes from the widest column of text until a line fits.
fn narrow(columns: &[Column], widths: &mut [usize]) {
    let gaps = 2 * (widths.len() - 1);
    while widths.iter().sum::<usize>() + gaps > WIDTH {
        let wide = (0..widths.len()).filter(|at| !columns[*at].number && widths[*at] > NARROWEST);
        let Some(widest) = wide.max_by_key(|at| widths[*at]) else { return };
        widths[widest] -= 1;
    }
}

/// `text` in at most `width` characters.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// `text` in the colour of trouble, if there are colours.
pub(crate) fn painted(text: String, colours: bool) -> String {
    if colours { format!("\u{1b}[31m{text}\u{1b}[0m") } else { text }
}

/// A number in few characters.
pub(crate) fn count(number: u64) -> String {
    if number < 100_000 {
        return number.to_string();
    }
    let mut scaled = number as f64;
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        if scaled >= 1e3 {
            scaled /= 1e3;
            unit = next;
        }
    }
    format!("{scaled:.1}{unit}")
}

/// Bytes in few characters.
pub(crate) fn bytes(number: u64) -> String {
    ByteSize(number).to_string().replace(' ', "")
}
