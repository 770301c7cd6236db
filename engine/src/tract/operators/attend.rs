//! Attention with all that opset 25 has, row by row: windows, caps, lengths of caches, and the
//! scores as an output. What tract can do it does faster (see `attention`).

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::super::bodies;
use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum, integers_of};
use super::linear::dot;

/// What hides a key as infinity does, to ONNX Runtime.
pub(super) const HIDDEN: f32 = f32::MIN;

/// Queries from one question whether the run is over to the next.
pub(super) const ROWS_UNASKED: usize = 16;

/// Whether only this can do it.
pub(super) fn is_needed(node: &NodeProto) -> TractResult<bool> {
    let int = |name: &str| node.get_attr_opt::<i64>(name);
    let is_named = |names: &[String], index: usize| names.get(index).is_some_and(|n| !n.is_empty());
    let has_windows = ["left_window_size", "right_window_size"].into_iter();
    let has_windows = has_windows.map(|name| Ok(int(name)?.unwrap_or(-1) >= 0));
    let has_windows = has_windows.collect::<TractResult<Vec<bool>>>()?.contains(&true);
    let has_cap = node.get_attr_opt::<f32>("softcap")?.unwrap_or(0.0) != 0.0;
    Ok(has_windows || has_cap || is_named(&node.input, 6) || is_named(&node.output, 3))
}

pub(super) fn attend(node: &NodeProto) -> Built {
    let int = |name: &str| node.get_attr_opt::<i64>(name);
    let heads = |name: &str| -> TractResult<Option<usize>> {
        Ok(int(name)?.map(usize::try_from).transpose()?.filter(|&heads| heads > 0))
    };
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    ensure!(node.output.first().is_some_and(|name| !name.is_empty()), "no output");
    ensure!(given(4) == given(5), "past_key and past_value go together");
    ensure!(!(given(4) && given(6)), "past_key and nonpad_kv_seqlen do not go together");
    built(
        node,
        Attend {
            heads: [heads("q_num_heads")?, heads("kv_num_heads")?],
            scale: node.get_attr_opt::<f32>("scale")?,
            cap: node.get_attr_opt::<f32>("softcap")?.unwrap_or(0.0),
            is_causal: int("is_causal")?.unwrap_or(0) != 0,
            left: int("left_window_size")?.filter(|&size| size >= 0),
            right: int("right_window_size")?.filter(|&size| size >= 0),
            scores: match int("qk_matmul_output_mode")?.unwrap_or(0) {
                _ if node.output.get(3).is_none_or(String::is_empty) => None,
                0 => Some(Scores::Products),
                1 => Some(Scores::Capped),
                2 => Some(Scores::Masked),
                3 => Some(Scores::Shares),
                other => bail!("qk_matmul_output_mode {other}"),
            },
            has_mask: given(3),
            has_past: given(4),
            has_lengths: given(6),
        },
    )
}

#[derive(Debug)]
struct Attend {
    /// Of queries and of keys, where they are not an axis of theirs.
    heads: [Option<usize>; 2],
    scale: Option<f32>,
    cap: f32,
    is_causal: bool,
    left: Option<i64>,
    right: Option<i64>,
    /// `None`: there is none.
    scores: Option<Scores>,
    has_mask: bool,
    has_past: bool,
    has_lengths: bool,
}

/// What the fourth output shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scores {
    Products,
    Capped,
    Masked,
    Shares,
}

/// Queries, keys or values: rows by batch and head.
pub(super) struct Rows {
    /// Batch, heads, rows of each, length of a row.
    pub(super) sizes: [usize; 4],
    /// In that order.
    values: Vec<f32>,
}

impl Rows {
    pub(super) fn row(&self, batch: usize, head: usize, row: usize) -> &[f32] {
        let [_, heads, rows, length] = self.sizes;
        &self.values[((batch * heads + head) * rows + row) * length..][..length]
    }

    /// # Errors
    /// Another rank; a width that the heads do not divide.
    pub(super) fn new(tensor: &Tensor, heads: Option<usize>) -> TractResult<Self> {
        let sizes = split(tensor.shape(), heads)?;
        let tensor = tensor.cast_to::<f32>()?;
        let plain = tensor.try_as_plain_ram()?;
        let from = plain.as_slice::<f32>()?;
        if tensor.rank() == 4 {
            return Ok(Self { sizes, values: from.to_vec() });
        }
        let [batch, heads, rows, length] = sizes;
        let mut values = Vec::with_capacity(from.len());
        for (batch, head, row) in places([batch, heads, rows]) {
            values.extend_from_slice(
                &from[((batch * rows + row) * heads + head) * length..][..length],
            );
        }
        Ok(Self { sizes, values })
    }

    /// Those of the past and then these.
    fn after(self, past: &Tensor) -> TractResult<Self> {
        let past = Self::new(past, None)?;
        let [batch, heads, rows, length] = self.sizes;
        let [past_batch, past_heads, past_rows, past_length] = past.sizes;
        let fits = [batch, heads, length] == [past_batch, past_heads, past_length];
        ensure!(fits, "a past of shape {:?} for {:?}", past.sizes, self.sizes);
        let mut values = Vec::with_capacity(past.values.len() + self.values.len());
        for block in 0..batch * heads {
            values.extend_from_slice(
                &past.values[block * past_rows * length..][..past_rows * length],
            );
            values.extend_from_slice(&self.values[block * rows * length..][..rows * length]);
        }
        Ok(Self { sizes: [batch, heads, past_rows + rows, length], values })
    }

    fn tensor(self, datum: DatumType) -> TractResult<Tensor> {
        let tensor = tract_ndarray::ArrayD::from_shape_vec(&self.sizes[..], self.values)?;
        Ok(tensor.into_tensor().cast_to_dt(datum)?.into_owned())
    }
}

/// Batch, heads, rows of each and length of a row, of a tensor of rank 4, or of 3 with that many
/// heads side by side.
fn split(shape: &[usize], heads: Option<usize>) -> TractResult<[usize; 4]> {
    match *shape {
        [batch, heads, rows, length] => Ok([batch, heads, rows, length]),
        [batch, rows, width] => {
            let heads = heads.context("the number of heads is not given")?;
            ensure!(width.is_multiple_of(heads), "{heads} heads of {width} numbers");
            Ok([batch, heads, rows, width / heads])
        }
        _ => bail!("a shape of rank {}, expected 3 or 4", shape.len()),
    }
}

pub(super) fn places([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// What is added to scores, of axes batch, heads, queries and keys, one of which may stand for all.
pub(super) struct Mask(pub(super) tract_ndarray::ArrayD<f32>);

impl Mask {
    pub(super) fn new(mask: &Tensor) -> TractResult<Self> {
        ensure!(mask.rank() <= 4, "a mask of rank {}", mask.rank());
        let added = match mask.datum_type() {
            DatumType::Bool => {
                let seen = mask.to_plain_array_view::<bool>()?;
                seen.mapv(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
            }
            _ => mask.cast_to::<f32>()?.to_plain_array_view::<f32>()?.into_owned(),
        };
        let mut shape = vec![1; 4 - mask.rank()];
        shape.extend_from_slice(mask.shape());
        Ok(Self(added.into_shape_with_order(shape)?))
    }

    /// Keys past its end are hidden.
    pub(super) fn at(&self, place: [usize; 3], key: usize) -> f32 {
        let mut index = [place[0], place[1], place[2], key];
        for (index, &size) in index.iter_mut().zip(self.0.shape()).take(3) {
            *index = if size == 1 { 0 } else { *index };
        }
        if self.0.shape()[3] == 1 {
            index[3] = 0;
        }
        self.0.get(index).copied().unwrap_or(f32::NEG_INFINITY)
    }
}

impl Attend {
    /// Whether a query at this place of all that was asked sees a key.
    fn sees(&self, query: i64, key: i64) -> bool {
        !(self.is_causal && key > query
            || self.left.is_some_and(|left| key < query.saturating_sub(left))
            || self.right.is_some_and(|right| key > query.saturating_add(right)))
    }

    /// The scores of one query become its shares of the keys; `shown` is what the fourth output
    /// shows of them.
    fn to_shares(&self, row: &mut [f32], added: impl Fn(usize) -> f32, shown: &mut [f32]) {
        let mut show = |what: Scores, row: &[f32]| {
            if self.scores == Some(what) {
                shown.copy_from_slice(row);
            }
        };
        show(Scores::Products, row);
        if self.cap != 0.0 {
            row.iter_mut().for_each(|score| *score = self.cap * (*score / self.cap).tanh());
        }
        show(Scores::Capped, row);
        let mut is_shown = false;
        row.iter_mut().enumerate().for_each(|(key, score)| {
            let added = added(key);
            is_shown |= added > HIDDEN;
            *score = if added == f32::NEG_INFINITY { added } else { *score + added };
        });
        show(Scores::Masked, row);
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // By all and not by the largest, which is found among numbers only.
        if !is_shown || row.iter().all(|&score| score == f32::NEG_INFINITY) {
            row.fill(0.0);
        } else {
            let mut sum = 0.0;
            for score in row.iter_mut() {
                *score = (*score - largest).exp();
                sum += *score;
            }
            row.iter_mut().for_each(|share| *share /= sum);
        }
        show(Scores::Shares, row);
    }
}

impl Kernel for Attend {
    fn name(&self) -> &'static str {
        "Attention"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [queries, keys, values, rest @ ..] = inputs else {
            bail!("expected three inputs or more, got {}", inputs.len());
        };
        for form in [queries, keys, values] {
            expect_datum(form, &[DatumType::F16, DatumType::F32])?;
        }
        let split = |form: &Form, heads: Option<usize>| -> TractResult<[TDim; 4]> {
            Ok(match &*form.shape {
                [a, b, c, d] => [a, b, c, d].map(Clone::clone),
                [batch, rows, width] => {
                    let heads = heads.context("the number of heads is not given")?;
                    [batch.clone(), heads.to_dim(), rows.clone(), width.clone() / heads]
                }
                other => bail!("a shape of rank {}, expected 3 or 4", other.len()),
            })
        };
        let [batch, heads, rows, _] = split(queries, self.heads[0])?;
        let [_, key_heads, mut all, key_length] = split(keys, self.heads[1])?;
        let [_, _, _, length] = split(values, self.heads[1])?;
        if self.has_past {
            let past = rest.get(usize::from(self.has_mask)).context("no past")?;
            ensure!(past.shape.len() == 4, "a past of rank {}", past.shape.len());
            all += &past.shape[2];
        }
        let output = match queries.shape.len() {
            3 => tvec![batch.clone(), rows.clone(), heads.clone() * &length],
            _ => tvec![batch.clone(), heads.clone(), rows.clone(), length.clone()],
        };
        let shown = if self.scores.is_some() { all.clone() } else { 0.to_dim() };
        let present = |form: &Form, length: TDim| {
            Form::new(form.datum, [batch.clone(), key_heads.clone(), all.clone(), length])
        };
        Ok(tvec![
            Form::new(queries.datum, output),
            present(keys, key_length),
            present(values, length),
            Form::new(queries.datum, [batch.clone(), heads, rows, shown]),
        ])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [queries, keys, values, rest @ ..] = inputs else {
            bail!("expected three inputs or more, got {}", inputs.len());
        };
        let [datum, key_datum, value_datum] = [queries, keys, values].map(|of| of.datum_type());
        let (is_flat, mut rest) = (queries.rank() == 3, rest.iter());
        let mut next = |is_given: bool, what: &str| match is_given {
            true => rest.next().map(Some).with_context(|| format!("no {what}")),
            false => Ok(None),
        };
        let queries = Rows::new(queries, self.heads[0])?;
        let (mut keys, mut values) =
            (Rows::new(keys, self.heads[1])?, Rows::new(values, self.heads[1])?);
        let mask = next(self.has_mask, "mask")?.map(|mask| Mask::new(mask)).transpose()?;
        let mut past = 0;
        if let Some(past_keys) = next(self.has_past, "past")? {
            past = past_keys.shape().get(2).copied().unwrap_or(0);
            keys = keys.after(past_keys)?;
            values = values.after(next(true, "past")?.context("no past")?)?;
        }
        let lengths = next(self.has_lengths, "lengths")?.map(|of| integers_of(of)).transpose()?;
        let [batch, heads, rows, width] = queries.sizes;
        let [_, key_heads, all, _] = keys.sizes;
        let length = values.sizes[3];
        let fits = keys.sizes == [batch, key_heads, all, width]
            && values.sizes[..3] == keys.sizes[..3]
            && heads.is_multiple_of(key_heads.max(1))
            && key_heads > 0
            && lengths.as_ref().is_none_or(|lengths| lengths.len() == batch);
        ensure!(
            fits,
            "queries {:?}, keys {:?}, values {:?}",
            queries.sizes,
            keys.sizes,
            values.sizes
        );
        let fits = |mask: &Mask| {
            let shape = mask.0.shape().iter().zip([batch, heads, rows]);
            shape.into_iter().all(|(&size, of)| size == 1 || size == of)
        };
        ensure!(mask.as_ref().is_none_or(fits), "a mask of other sizes than the scores");
        let scale = self.scale.unwrap_or_else(|| 1.0 / (width as f32).sqrt());
        let all_shown = [batch, heads, rows, if self.scores.is_some() { all } else { 0 }];
        let mut shown = vec![0f32; checked_len(&all_shown)?];
        let mut output = vec![0f32; checked_len(&[batch, heads, rows, length])?];
        let mut row = vec![0f32; all];
        for (at, (b, h, q)) in places([batch, heads, rows]).enumerate() {
            if q % ROWS_UNASKED == 0 {
                bodies::ask()?;
            }
            let key_head = h / (heads / key_heads);
            let (query, valid) = match &lengths {
                Some(lengths) => (lengths[b].saturating_sub(rows as i64), lengths[b]),
                None => (past as i64, i64::MAX),
            };
            let query = query.saturating_add(q as i64);
            let asked = queries.row(b, h, q);
            for (key, score) in row.iter_mut().enumerate() {
                *score = scale * dot(asked, keys.row(b, key_head, key));
            }
            let added = |key: usize| {
                let is_seen = (key as i64) < valid && self.sees(query, key as i64);
                let added = mask.as_ref().map_or(0.0, |mask| mask.at([b, h, q], key));
                if is_seen { added } else { f32::NEG_INFINITY }
            };
            self.to_shares(&mut row, added, &mut shown[at * all_shown[3]..][..all_shown[3]]);
            let place = if is_flat { (b * rows + q) * heads + h } else { at };
            let written = &mut output[place * length..][..length];
            for (key, &share) in row.iter().enumerate().filter(|(_, share)| **share != 0.0) {
                let values = values.row(b, key_head, key);
                written.iter_mut().zip(values).for_each(|(to, value)| *to += share * value);
            }
        }
        let tensor = |shape: &[usize], values: Vec<f32>| -> TractResult<Tensor> {
            let tensor = tract_ndarray::ArrayD::from_shape_vec(shape, values)?.into_tensor();
            Ok(tensor.cast_to_dt(datum)?.into_owned())
        };
        let output = match is_flat {
            true => tensor(&[batch, rows, heads * length], output)?,
            false => tensor(&[batch, heads, rows, length], output)?,
        };
        Ok(tvec![
            output,
            keys.tensor(key_datum)?,
            values.tensor(value_datum)?,
            tensor(&all_shown, shown)?,
        ])
    }
}
