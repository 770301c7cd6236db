//! A bundle's graph: woken from its compiled plan, or loaded, and a plan kept for the next time.

use wisp_engine::{EngineKind, Graph};

use crate::bundle::Content;
use crate::cache::Cache;

/// Loads a graph for the first of `engines` that can. Where its plan was compiled before, that is
/// a matter of milliseconds, and its weights are shared with the file.
///
/// # Errors
/// No engine can load it, or it is damaged.
pub(super) fn load(
    name: &str,
    onnx: &Content,
    engines: &[EngineKind],
    cache: Option<&Cache>,
) -> Result<Graph, String> {
    // tract's plans are the ones that can be kept.
    let Some(cache) = cache.filter(|_| engines.first() == Some(&EngineKind::Tract)) else {
        return Graph::load_any(onnx.bytes()?, engines).map_err(|error| error.to_string());
    };
    if let Some(graph) = wake(name, onnx, cache) {
        return Ok(graph);
    }
    let compiled = Graph::compile_any(onnx.bytes()?, engines, true);
    let (graph, compiled) = compiled.map_err(|error| error.to_string())?;
    let Some(compiled) = compiled else {
        tracing::debug!("graph `{name}` has no compiled plan: it cannot hold all of its operators");
        return Ok(graph);
    };
    let kept = cache.put_plan(onnx.digest(), |to| compiled.write(onnx.digest().hex(), to));
    if let Err(error) = kept {
        tracing::warn!("the compiled plan of graph `{name}` cannot be kept: {error}");
        return Ok(graph);
    }
    // Its weights are the file's from now on, not a copy beside it.
    Ok(wake(name, onnx, cache).unwrap_or(graph))
}

fn wake(name: &str, onnx: &Content, cache: &Cache) -> Option<Graph> {
    let plan = cache.plan(onnx.digest())?;
    let file = onnx.clone();
    let woken = Graph::wake(&plan, onnx.digest().hex(), move || file.bytes().cloned());
    woken
        .inspect_err(|reason| tracing::debug!("graph `{name}` is loaded anew: its plan: {reason}"))
        .ok()
}
