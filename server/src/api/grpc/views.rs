//! What the server tells of its models and settings, as gRPC's messages.

use std::collections::{BTreeMap, HashMap};

use super::super::{logging, metadata, statistics, trace};
use super::{proto, tensors};
use crate::error::Error;
use crate::repository::Version;
use crate::tensor::{Contract, Datatype};

pub(super) fn model_config(name: &str, contract: &Contract) -> proto::ModelConfig {
    let data_type = |datatype: Datatype| tensors::data_type(datatype).into();
    let inputs = contract.inputs.iter().map(|spec| proto::ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype),
        dims: spec.shape.clone(),
    });
    let outputs = contract.outputs.iter().map(|spec| proto::ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype),
        dims: spec.shape.clone(),
    });
    proto::ModelConfig {
        name: name.to_owned(),
        platform: metadata::PLATFORM.to_owned(),
        backend: "wisp".to_owned(),
        max_batch_size: 0,
        input: inputs.collect(),
        output: outputs.collect(),
    }
}

pub(super) fn model_statistics(version: &Version) -> proto::ModelStatistics {
    let counted = statistics::of_version(version);
    let duration = |duration: statistics::Duration| {
        Some(proto::StatisticDuration { count: duration.count, ns: duration.ns })
    };
    let spans = counted.inference_stats;
    let batches = counted.batch_stats.into_iter().map(|batch| proto::InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    });
    proto::ModelStatistics {
        name: counted.name,
        version: counted.version,
        last_inference: counted.last_inference,
        inference_count: counted.inference_count,
        execution_count: counted.execution_count,
        inference_stats: Some(proto::InferStatistics {
            success: duration(spans.success),
            fail: duration(spans.fail),
            queue: duration(spans.queue),
            compute_input: duration(spans.compute_input),
            compute_infer: duration(spans.compute_infer),
            compute_output: duration(spans.compute_output),
            cache_hit: duration(spans.cache_hit),
            cache_miss: duration(spans.cache_miss),
        }),
        batch_stats: batches.collect(),
    }
}

/// Settings as they came: no value puts one back.
pub(super) fn trace_changes(
    settings: HashMap<String, proto::trace_setting_request::SettingValue>,
) -> trace::Changes {
    let changes = settings
        .into_iter()
        .map(|(name, setting)| (name, (!setting.value.is_empty()).then_some(setting.value)));
    changes.collect()
}

pub(super) fn trace_settings(view: trace::View) -> proto::TraceSettingResponse {
    let settings = [
        ("trace_file", view.trace_file),
        ("trace_level", view.trace_level[0].to_owned()),
        ("trace_rate", view.trace_rate),
        ("trace_count", view.trace_count),
        ("log_frequency", view.log_frequency),
        ("trace_mode", view.trace_mode.to_owned()),
    ];
    let settings = settings.map(|(name, value)| {
        let value = proto::trace_setting_response::SettingValue { value: vec![value] };
        (name.to_owned(), value)
    });
    proto::TraceSettingResponse { settings: settings.into() }
}

/// Settings as they came.
///
/// # Errors
/// One has no value.
pub(super) fn log_changes(
    settings: HashMap<String, proto::log_settings_request::SettingValue>,
) -> Result<BTreeMap<String, logging::Setting>, Error> {
    use proto::log_settings_request::setting_value::ParameterChoice;
    let changes = settings.into_iter().map(|(name, setting)| {
        let setting = match setting.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => logging::Setting::Switch(value),
            Some(ParameterChoice::Uint32Param(value)) => logging::Setting::Number(value.into()),
            Some(ParameterChoice::StringParam(value)) => logging::Setting::Text(value),
            None => {
                return Err(Error::InvalidInput(format!("log setting `{name}` has no value")));
            }
        };
        Ok((name, setting))
    });
    changes.collect()
}

pub(super) fn log_settings(view: &logging::View) -> proto::LogSettingsResponse {
    use proto::log_settings_response::SettingValue;
    use proto::log_settings_response::setting_value::ParameterChoice;
    let settings = [
        ("log_file", ParameterChoice::StringParam(view.log_file.to_owned())),
        ("log_info", ParameterChoice::BoolParam(view.log_info)),
        ("log_warning", ParameterChoice::BoolParam(view.log_warning)),
        ("log_error", ParameterChoice::BoolParam(view.log_error)),
        ("log_verbose_level", ParameterChoice::Uint32Param(view.log_verbose_level)),
        ("log_format", ParameterChoice::StringParam(view.log_format.to_owned())),
    ];
    let settings = settings
        .map(|(name, choice)| (name.to_owned(), SettingValue { parameter_choice: Some(choice) }));
    proto::LogSettingsResponse { settings: settings.into() }
}
