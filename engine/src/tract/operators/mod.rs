//! Operators of our own: those that tract lacks, gets wrong or runs slowly. A graph's file is
//! not to be trusted: a builder checks every attribute, and what it has built cannot read out
//! of bounds, hang or recurse without bound.

mod algebra;
mod attend;
mod attention;
mod attributes;
mod blocks;
mod branches;
mod causal;
mod contrib;
mod deform;
mod dialect;
mod distances;
mod einsum;
mod expressions;
mod hash;
mod indices;
mod integers;
mod inverse;
mod kernel;
mod layer;
mod layout;
mod linear;
mod linear_attention;
mod loops;
mod losses;
mod lstm;
mod mapping;
mod ngrams;
mod numeric;
mod optional;
mod pad;
mod pairs;
mod pooling;
mod products;
mod quantize;
mod range;
mod ranks;
mod recurrent;
mod reduce;
mod refused;
mod regions;
mod reversed;
pub(super) mod rounded;
mod scores;
mod selection;
mod sizes;
mod slice;
mod stable;
mod svm;
mod text;
mod theirs;
mod tokens;
mod transposed;
mod trees;
mod turns;
mod unpacked;

use tract_onnx::model::OnnxOpRegister;

/// Ours, which swaps the last two axes, whatever the rank.
pub(super) const TRANSPOSED: &str = "wisp.Transposed";

/// Adds them to tract's own, or puts them in their place. tract looks at an operator's name
/// only, not at its domain.
pub(super) fn register(operators: &mut OnnxOpRegister) {
    algebra::register(operators);
    attention::register(operators);
    blocks::register(operators);
    branches::register(operators);
    causal::register(operators);
    contrib::register(operators);
    deform::register(operators);
    distances::register(operators);
    einsum::register(operators);
    hash::register(operators);
    indices::register(operators);
    integers::register(operators);
    inverse::register(operators);
    layout::register(operators);
    linear::register(operators);
    linear_attention::register(operators);
    loops::register(operators);
    losses::register(operators);
    mapping::register(operators);
    ngrams::register(operators);
    numeric::register(operators);
    optional::register(operators);
    pad::register(operators);
    pairs::register(operators);
    pooling::register(operators);
    products::register(operators);
    quantize::register(operators);
    range::register(operators);
    ranks::register(operators);
    recurrent::register(operators);
    reduce::register(operators);
    refused::register(operators);
    regions::register(operators);
    reversed::register(operators);
    rounded::register(operators);
    selection::register(operators);
    sizes::register(operators);
    slice::register(operators);
    stable::register(operators);
    svm::register(operators);
    text::register(operators);
    tokens::register(operators);
    transposed::register(operators);
    trees::register(operators);
    unpacked::register(operators);
}
