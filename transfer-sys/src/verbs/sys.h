/*
 * What the bindings in sys.rs are made from: ci/verbs-header --write runs bindgen over this.
 *
 * Each exported function that is used stands here once, as a type: the library is opened at run time, so there is
 * nothing to link with. Three names are macros over functions, which are called as functions here.
 */
#include <infiniband/verbs.h>

#undef ibv_query_port
#undef ibv_reg_mr

#define FUNCTION(name) typedef __typeof__(name) *name##_fn

FUNCTION(ibv_get_device_list);
FUNCTION(ibv_free_device_list);
FUNCTION(ibv_get_device_name);
FUNCTION(ibv_get_device_guid);
FUNCTION(ibv_open_device);
FUNCTION(ibv_close_device);
FUNCTION(ibv_query_device);
FUNCTION(ibv_query_port);
FUNCTION(ibv_query_gid);
FUNCTION(_ibv_query_gid_table);
FUNCTION(ibv_get_async_event);
FUNCTION(ibv_ack_async_event);
FUNCTION(ibv_alloc_pd);
FUNCTION(ibv_dealloc_pd);
FUNCTION(ibv_reg_mr);
FUNCTION(ibv_reg_mr_iova2);
FUNCTION(ibv_reg_dmabuf_mr);
FUNCTION(ibv_dereg_mr);
FUNCTION(ibv_create_comp_channel);
FUNCTION(ibv_destroy_comp_channel);
FUNCTION(ibv_create_cq);
FUNCTION(ibv_destroy_cq);
FUNCTION(ibv_get_cq_event);
FUNCTION(ibv_ack_cq_events);
FUNCTION(ibv_create_srq);
FUNCTION(ibv_modify_srq);
FUNCTION(ibv_destroy_srq);
FUNCTION(ibv_create_qp);
FUNCTION(ibv_modify_qp);
FUNCTION(ibv_query_qp);
FUNCTION(ibv_destroy_qp);
