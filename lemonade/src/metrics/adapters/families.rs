//! Metric families as plain values, for whoever writes them in a format.

use crate::metrics::snapshot::HistogramCounts;

/// Series of one name.
#[derive(Debug)]
pub struct Family<'a> {
    /// Name, without the prefix of the program and without the suffix of its kind.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// How its numbers are to be read.
    pub kind: Kind,
    /// The series.
    pub series: Vec<(Labels<'a>, Value)>,
}

/// How the numbers of a family are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are distributions.
    Histogram,
    /// There is no number; the labels say everything.
    Fact,
}

/// One number or distribution.
#[derive(Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Real(f64),
    /// A distribution.
    Distribution(Box<HistogramCounts>),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<bool> for Value {
    fn from(holds: bool) -> Self {
        Self::Whole(holds.into())
    }
}

/// Labels with their values, three at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Labels<'a> {
    pairs: [(&'a str, &'a str); 3],
    count: usize,
}

impl<'a> Labels<'a> {
    /// The pairs.
    pub fn pairs(&self) -> &[(&'a str, &'a str)] {
        &self.pairs[..self.count]
    }

    fn and(mut self, pairs: &[(&'a str, &'a str)]) -> Self {
        self.pairs[self.count..self.count + pairs.len()].copy_from_slice(pairs);
        self.count += pairs.len();
        self
    }
}

impl<'a, const N: usize> From<[(&'a str, &'a str); N]> for Labels<'a> {
    fn from(pairs: [(&'a str, &'a str); N]) -> Self {
        Self::default().and(&pairs)
    }
}

impl<'a, const N: usize, const M: usize> From<([(&'a str, &'a str); N], [(&'a str, &'a str); M])>
    for Labels<'a>
{
    fn from((first, second): ([(&'a str, &'a str); N], [(&'a str, &'a str); M])) -> Self {
        Self::from(first).and(&second)
    }
}

/// Gathers families.
#[derive(Debug, Default)]
pub struct Families<'a>(pub Vec<Family<'a>>);

impl<'a> Families<'a> {
    /// Adds what labels alone say.
    pub fn fact(&mut self, name: &'static str, help: &'static str, labels: impl Into<Labels<'a>>) {
        self.add(name, help, Kind::Fact, [(labels, 1)]);
    }

    /// Adds a counter of one series without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.add(name, help, Kind::Counter, [([], value)]);
    }

    /// Adds a gauge of one series without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.add(name, help, Kind::Gauge, [([], value)]);
    }

    /// Adds a counter.
    pub fn counters<L: Into<Labels<'a>>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (L, u64)>,
    ) {
        self.add(name, help, Kind::Counter, series);
    }

    /// Adds a gauge.
    pub fn gauges<L: Into<Labels<'a>>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (L, impl Into<Value>)>,
    ) {
        self.add(name, help, Kind::Gauge, series);
    }

    /// Adds a histogram.
    pub fn histograms<'b, L: Into<Labels<'a>>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (L, &'b HistogramCounts)>,
    ) {
        let series = series.map(|(labels, counts)| (labels, Value::Distribution(Box::new(counts.clone()))));
        self.add(name, help, Kind::Histogram, series);
    }

    fn add<L: Into<Labels<'a>>, V: Into<Value>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        let series = series.into_iter().map(|(labels, value)| (labels.into(), value.into())).collect();
        self.0.push(Family { name, help, kind, series });
    }
}
