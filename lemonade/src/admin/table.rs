//! Tables and lines for people, as wide as what they are read on.

use bytesize::ByteSize;

use super::words::clean;

/// Widest that a column of text is before other columns are left out for it.
const FAIR: usize = 24;

/// Narrowest that a column of text is cut to.
const NARROWEST: usize = 6;

/// Narrowest that an address is cut to: its port stays, and something of its host.
const ADDRESS: usize = 12;

/// What lines are read on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Characters of a line; `None` where nothing is cut, as in a pipe.
    pub width: Option<usize>,
    /// Whether trouble is painted.
    pub colours: bool,
}

/// A column of a table.
pub(crate) struct Column {
    title: &'static str,
    number: bool,
    narrowest: usize,
    rank: u8,
}

impl Column {
    /// Of words, to the left; cut in the middle where the table is too wide.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self { title, number: false, narrowest: NARROWEST, rank: 0 }
    }

    /// Of addresses: as of words, and with room for the port.
    pub(crate) const fn address(title: &'static str) -> Self {
        Self { title, number: false, narrowest: ADDRESS, rank: 0 }
    }

    /// Of numbers, to the right.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title, number: true, narrowest: usize::MAX, rank: 0 }
    }

    /// Left out where the table is too wide, those of the highest rank first.
    pub(crate) const fn spare(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
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

/// Rows of a table that stand below lines of their own.
pub(crate) struct Group {
    /// These lines.
    pub(crate) head: Vec<String>,
    /// The rows.
    pub(crate) rows: Vec<Row>,
}

/// Draws a table.
pub(crate) fn table(columns: &[Column], rows: Vec<Row>, look: Look, out: &mut String) {
    grouped(columns, vec![Group { head: Vec::new(), rows }], look, out);
}

/// Draws a table of groups with a blank line between them; its columns have their titles once.
pub(crate) fn grouped(columns: &[Column], mut groups: Vec<Group>, look: Look, out: &mut String) {
    for cell in groups.iter_mut().flat_map(|group| &mut group.rows).flat_map(|row| &mut row.cells) {
        *cell = clean(cell);
    }
    let longest = |(at, column): (usize, &Column)| {
        let cells = groups.iter().flat_map(|group| &group.rows).map(|row| row.cells[at].as_str());
        cells.chain([column.title]).map(length).max().unwrap_or_default()
    };
    let natural: Vec<usize> = columns.iter().enumerate().map(longest).collect();
    let fit = Fit::of(columns, &natural, look.width.unwrap_or(usize::MAX));
    for (at, group) in groups.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        for text in &group.head {
            line(text, look, out);
        }
        if at == 0 {
            out.push_str(&fit.row(columns, columns.iter().map(|column| column.title)));
            out.push('\n');
        }
        for row in &group.rows {
            let cells = fit.row(columns, row.cells.iter().map(String::as_str));
            let note = row.note.as_deref().map(|note| wrapped(&clean(note), look.width, indent(note) + 2));
            for text in std::iter::once(cells).chain(note.into_iter().flatten()) {
                out.push_str(&if row.bad { painted(text, look.colours) } else { text });
                out.push('\n');
            }
        }
    }
}

/// Widths of the columns of one table, and the blanks between them; a column of no width is left out.
struct Fit {
    widths: Vec<usize>,
    gap: usize,
}

impl Fit {
    /// Narrows gaps first, then long words; then leaves columns out; and cuts words to the utmost last.
    fn of(columns: &[Column], natural: &[usize], width: usize) -> Self {
        let highest = columns.iter().map(|column| column.rank).max().unwrap_or_default();
        let mut narrow = Self { widths: natural.to_vec(), gap: 1 };
        for rank in (0..=highest).rev() {
            let kept =
                columns.iter().zip(natural).map(|(own, width)| if own.rank > rank { 0 } else { *width });
            let widths: Vec<usize> = kept.collect();
            let wide = Self { widths: widths.clone(), gap: 2 };
            if wide.total() <= width {
                return wide;
            }
            narrow.widths = widths;
            narrow.cut(columns, width, FAIR);
            if narrow.total() <= width {
                return narrow;
            }
        }
        narrow.cut(columns, width, 0);
        narrow
    }

    fn total(&self) -> usize {
        let kept = self.widths.iter().filter(|width| **width > 0).count();
        self.widths.iter().sum::<usize>() + self.gap * kept.saturating_sub(1)
    }

    /// Takes from the widest column of text until a line fits, down to `floor` or its narrowest.
    fn cut(&mut self, columns: &[Column], width: usize, floor: usize) {
        while self.total() > width {
            let can = |at: &usize| self.widths[*at] > columns[*at].narrowest.max(floor);
            let Some(widest) = (0..columns.len()).filter(can).max_by_key(|at| self.widths[*at]) else {
                return;
            };
            self.widths[widest] -= 1;
        }
    }

    fn row<'a>(&self, columns: &[Column], cells: impl Iterator<Item = &'a str>) -> String {
        let mut line = String::new();
        for ((cell, column), width) in cells.zip(columns).zip(&self.widths).filter(|(_, width)| **width > 0) {
            let (cell, gap) = (cut(cell, *width), self.gap);
            let padded = if column.number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&format!("{padded}{:gap$}", ""));
        }
        line.trim_end().to_owned()
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn indent(text: &str) -> usize {
    text.chars().take_while(|letter| *letter == ' ').count()
}

/// `text` in at most `width` characters: both ends of it, which tell names and ports apart.
pub(crate) fn cut(text: &str, width: usize) -> String {
    let all = length(text);
    if all <= width {
        return text.to_owned();
    }
    let Some(kept) = width.checked_sub(1) else { return String::new() };
    let head = kept / 2;
    let tail = all - (kept - head);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(tail)).collect()
}

/// Writes a line, broken where it is too wide; what follows stands below the words after its label.
pub(crate) fn line(text: &str, look: Look, out: &mut String) {
    const LABEL: usize = 10;
    for text in wrapped(text, look.width, LABEL) {
        out.push_str(&text);
        out.push('\n');
    }
}

/// `text` in lines of at most `width` characters, broken between words; all but the first stand in by `indent`.
pub(crate) fn wrapped(text: &str, width: Option<usize>, indent: usize) -> Vec<String> {
    let Some(width) = width.filter(|width| *width > 0) else { return vec![text.to_owned()] };
    let indent = if indent * 2 > width { 0 } else { indent };
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.trim_end().chars().collect();
    while rest.len() > width {
        let blank = (indent + 1..=width).rev().find(|at| rest[*at] == ' ');
        let at = blank.unwrap_or(width);
        lines.push(rest[..at].iter().collect::<String>().trim_end().to_owned());
        let next = rest[at..].iter().skip_while(|letter| **letter == ' ');
        rest = std::iter::repeat_n(' ', indent).chain(next.copied()).collect();
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// `number` with its noun.
pub(crate) fn many(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// A time in few characters, in the unit that says most.
pub(crate) fn latency(millis: f64) -> String {
    match millis {
        ms if ms < 0.9995 => format!("{:.0}us", ms * 1e3),
        ms if ms < 99.95 => format!("{ms:.1}ms"),
        ms if ms < 9_999.5 => format!("{ms:.0}ms"),
        ms => format!("{:.0}s", ms / 1e3),
    }
}

/// A time as RFC 3339 without the fraction of its second.
pub(crate) fn second(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
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
