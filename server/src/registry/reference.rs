//! Where a registry is, how it is spoken to, and with whose credentials.

use std::net::IpAddr;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;

use crate::error::{Error, one_line};

/// Whether the text is a reference to a registry.
pub fn is_reference(text: &str) -> bool {
    text.starts_with("oci://")
}

pub(super) fn parse(text: &str) -> Result<Reference, String> {
    let odd = |why: &str| {
        format!("`{text}`: expected oci://host/name:tag or oci://host/name@sha256:…: {why}")
    };
    let rest = text.strip_prefix("oci://").ok_or_else(|| odd("it does not begin with oci://"))?;
    let (host, _) = rest.split_once('/').ok_or_else(|| odd("it names no repository"))?;
    // Docker's rule; without it a first part of the name would be taken for a name on Docker Hub.
    if !(host.contains('.') || host.contains(':') || host == "localhost") {
        return Err(odd("it names no host"));
    }
    rest.parse().map_err(|error: oci_client::ParseError| odd(&error.to_string()))
}

pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) fn credentials(registry: &str) -> Result<RegistryAuth, Error> {
    use CredentialRetrievalError::{
        ConfigNotFound, ConfigReadError, HelperFailure, NoCredentialConfigured,
    };
    for found in [
        docker_credential::get_credential(registry),
        docker_credential::get_podman_credential(registry),
    ] {
        match found {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(RegistryAuth::Basic(user, password));
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                return Err(Error::Registry(format!(
                    "the credentials for {registry} are an identity token, expected user and password"
                )));
            }
            Err(ConfigNotFound | ConfigReadError | NoCredentialConfigured) => {}
            // The words of docker's own helpers for a registry that they know nothing of.
            Err(HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {}
            Err(error) => {
                let error = one_line(error.to_string().trim_end());
                return Err(Error::Registry(format!("the credentials for {registry}: {error}")));
            }
        }
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_host_and_repository() {
        for good in ["oci://localhost:5000/a/b:1", "oci://ghcr.io/a/b", "oci://127.0.0.1:5000/x:y"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["x", "oci://", "oci://name", "oci://team/name:1", "oci://h.io/UPPER:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for near in ["localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000"] {
            assert!(is_loopback(near), "{near}");
        }
        for far in ["localhost.example.com", "10.0.0.1:5000", "ghcr.io"] {
            assert!(!is_loopback(far), "{far}");
        }
    }
}
