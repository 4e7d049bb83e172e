//! stub
use crate::error::Result;
/// stub
pub async fn run(_keep: bool) -> Result<()> {
    Ok(())
}
