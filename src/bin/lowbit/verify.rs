//! `lowbit verify`: compares all checksums.

use lowbit::checkpoint::Checkpoint;
use serde_json::json;

use crate::output::Output;
use crate::{Arguments, Failure};

/// All files are looked at; the first failure decides.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let (mut list, mut text, mut failed) = (Vec::new(), String::new(), None);
    for path in &arguments.paths {
        let mut progress = output.progress("verifying");
        let verified = Checkpoint::open(path).and_then(|from| {
            from.verify(Some(&mut |done, total| progress.report(done, total)))
                .map_err(|error| error.within(&path.display().to_string()))
                .map(|()| from)
        });
        match verified {
            Ok(from) => {
                let (step, bytes) = (from.step(), from.bytes());
                let name = path.display();
                text += &format!("{name}: sound, step {step}, {bytes} bytes\n");
                let is = json!({"step": step, "files": from.files(), "file_bytes": bytes});
                list.push(json!({"path": path.to_string_lossy(), "sound": true, "is": is}));
            }
            Err(error) => {
                text += &format!("{}: NOT SOUND: {error}\n", path.display());
                list.push(json!({
                    "path": path.to_string_lossy(), "sound": false,
                    "status": format!("{:?}", error.status()), "error": error.to_string(),
                }));
                failed = failed.or(Some(error));
            }
        }
    }
    output.result(&json!({"files": list}), &text);
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(true),
    }
}
