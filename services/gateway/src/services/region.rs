//! `RegionService`: the regions of the cluster, from the topology. No node is asked.

use tidewall_proto::v1;
use tidewall_proto::v1::region_service_server::RegionService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::edge::Method;
use crate::{names, page};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;
/// What page tokens of this list are bound to.
const SCOPE: &str = "regions";

fn shown(region: &tidewall_client::topology::Region) -> v1::Region {
    v1::Region { name: names::region(&region.id), display_name: region.display_name.clone() }
}

#[tonic::async_trait]
impl RegionService for Services {
    async fn list_regions(
        &self,
        request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        let topology = &self.0.topology;
        let handler = |_, message: v1::ListRegionsRequest| async move {
            let wanted =
                (message.page_token.as_str(), page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?);
            let mut regions: Vec<_> = topology.regions.iter().collect();
            regions.sort_by(|a, b| a.id.cmp(&b.id));
            let (regions, next_page_token) = page::of(regions, SCOPE, wanted, |region| region.id.clone())?;
            Ok(v1::ListRegionsResponse { regions: regions.into_iter().map(shown).collect(), next_page_token })
        };
        self.0.run(Method::ListRegions, request, handler).await
    }

    async fn get_region(
        &self,
        request: Request<v1::GetRegionRequest>,
    ) -> Result<Response<v1::GetRegionResponse>, Status> {
        let edge = &self.0;
        let handler = |_, message: v1::GetRegionRequest| async move {
            names::parse_region("name", &message.name)?;
            let position = edge.region("name", &message.name)?;
            Ok(v1::GetRegionResponse { region: Some(shown(&edge.topology.regions[position])) })
        };
        edge.run(Method::GetRegion, request, handler).await
    }
}
