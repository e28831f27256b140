//! Addresses of remotes: what is accepted is shown as something that is accepted again.
#![no_main]

use cairnfs::provider::RemoteUrl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(url) = RemoteUrl::parse(text) {
        RemoteUrl::parse(&url.to_string()).expect("what is shown can be typed");
    }
});
