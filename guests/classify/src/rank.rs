//! From logits to the most likely classes.

/// Turns logits into probabilities that sum to 1. The largest logit is subtracted first,
/// so that none overflows.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// The indices of the `k` largest values, largest first; all of them where there are fewer.
pub fn top_k(values: &[f32], k: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    indices.truncate(k);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_for_logits_past_exp_range() {
        let probabilities = softmax(&[1000.0, 999.0, -1000.0]);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((probabilities[0] - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn top_k_is_sorted_and_never_longer_than_the_values() {
        assert_eq!(top_k(&[0.1, 0.7, 0.2], 2), [1, 2]);
        assert_eq!(top_k(&[0.1, 0.7], 5), [1, 0]);
    }
}
