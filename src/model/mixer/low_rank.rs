//! A product with one matrix, or with two, one after another.

use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint,
    model::load::{Linear, Loader, Mat},
};

/// See the module.
pub struct LowRank {
    /// (rank, inputs)
    down: Option<Linear>,
    /// (outputs, inputs or rank)
    up: Linear,
}

impl LowRank {
    pub fn load(loader: &mut Loader<'_>, low: &blueprint::LowRank) -> Result<Self> {
        let down = low.down.as_ref().map(|down| loader.linear(down)).transpose()?;
        Ok(Self { down, up: loader.linear(&low.up)? })
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        self.down.iter().chain([&self.up]).map(|linear| &linear.w)
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        self.down.iter_mut().chain([&mut self.up]).map(|linear| &mut linear.w)
    }

    /// The product with its input, if one is all there is.
    pub fn only<'a>(&'a self, y: &'a mut [f32]) -> Option<Product<'a>> {
        if self.down.is_none() { Some(Product { w: self.up.w.view(), y }) } else { None }
    }

    /// What [`LowRank::only`] leaves to do. `low` are rows to work in.
    pub fn finish(&self, b: &mut impl Backend, x: &Rows, low: &mut Rows, y: &mut [f32]) {
        if let Some(down) = &self.down {
            let w = down.w.view();
            let y_low = low.start_wide(x.len(), w.rows);
            b.matmul(x, &mut [Product { w, y: y_low }]);
            down.finish(b, y_low);
            b.prepare(low);
            b.matmul(low, &mut [Product { w: self.up.w.view(), y }]);
        }
        self.up.finish(b, y);
    }
}
