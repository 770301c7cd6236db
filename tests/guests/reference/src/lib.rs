//! The reference servers' usual small models, and identity over every datatype. The setting
//! `kind` names which: `sum_strings`, or `identity` with its tensors in the setting `tensors`.

mod identity;
mod sum_strings;

use wisp_guest::{Contract, Error, Model, Request, Response, setting_or};

use identity::Identity;

enum Reference {
    SumStrings,
    Identity(Identity),
}

impl Model for Reference {
    fn prepare() -> Result<(Self, Contract), String> {
        match setting_or("kind", String::new())?.as_str() {
            "sum_strings" => Ok((Reference::SumStrings, sum_strings::contract())),
            "identity" => {
                let (identity, contract) = Identity::parse(&setting_or("tensors", String::new())?)
                    .map_err(|reason| format!("setting `tensors`: {reason}"))?;
                Ok((Reference::Identity(identity), contract))
            }
            other => {
                Err(format!("setting `kind` is `{other}`, expected `sum_strings` or `identity`"))
            }
        }
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let outputs = match self {
            Reference::SumStrings => sum_strings::infer(&request)?,
            Reference::Identity(identity) => identity.infer(&request),
        };
        Ok(Response { outputs, parameters: Vec::new() })
    }
}

wisp_guest::export!(Reference);
