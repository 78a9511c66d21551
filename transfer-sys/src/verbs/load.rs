//! Opening libibverbs: a file by dlopen(3), its symbols by dlvsym(3).
#![allow(unsafe_code, reason = "dlopen and dlvsym")]

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys;

/// Why there are no verbs here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The dynamic linker cannot open the library.
    #[error(
        "{} cannot be opened: {reason}. RDMA needs rdma-core: install libibverbs1 and ibverbs-providers \
         (Debian, Ubuntu) or libibverbs (Fedora, RHEL)", library.display()
    )]
    NotFound {
        /// The file that was asked for.
        library: PathBuf,
        /// What the dynamic linker says.
        reason: String,
    },
    /// The library lacks a symbol without which nothing works.
    #[error(
        "{} has no symbol {symbol} ({version}): it is no libibverbs, or one that is too old. Install a newer \
         rdma-core (libibverbs1)", library.display()
    )]
    NoSymbol {
        /// The file that was opened.
        library: PathBuf,
        /// What it lacks.
        symbol: &'static str,
        /// The version of the interface that brought it.
        version: &'static str,
    },
}

/// What dlopen(3) gave. The library stays mapped for good once it is opened: its providers start threads and leave
/// destructors behind, which must not run into pages that are gone.
struct Handle(NonNull<c_void>);

// SAFETY: V1 (docs/ARCHITECTURE.md). The handle is a token for dlvsym and dlclose, which are thread safe.
unsafe impl Send for Handle {}
// SAFETY: V1, as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let not_found = |reason| LoadError::NotFound { library: path.to_owned(), reason };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| not_found("its name has a zero byte".to_owned()))?;
        // SAFETY: V1. A string that ends with zero; whoever names a library says that it may run in this process.
        let handle =
            unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE) };
        NonNull::new(handle).map(Self).ok_or_else(|| not_found(dl_error()))
    }

    /// The symbol of that version, or of no version where the library has none.
    fn symbol(&self, name: &CStr, version: &CStr) -> *mut c_void {
        // SAFETY: V1. An open handle and two strings that end with zero.
        let versioned = unsafe { libc::dlvsym(self.0.as_ptr(), name.as_ptr(), version.as_ptr()) };
        if !versioned.is_null() {
            return versioned;
        }
        // SAFETY: V1. As above.
        unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: V1. Opened once, closed once; RTLD_NODELETE keeps it mapped nevertheless.
        unsafe { libc::dlclose(self.0.as_ptr()) };
    }
}

/// What the last failing dl function of this thread says.
fn dl_error() -> String {
    // SAFETY: plain call; the text is the thread's own until its next dl call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason is given".to_owned();
    }
    // SAFETY: a string that ends with zero, as dlerror(3) promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The bindings say `Option<fn>`; of a symbol that is there, the function in it.
pub(super) trait Function {
    /// That function.
    type Call;
}
impl<F> Function for Option<F> {
    type Call = F;
}

macro_rules! api {
    (required { $($field:ident: $name:ident, $version:literal;)* }
     optional { $($field_:ident: $name_:ident, $version_:literal;)* }) => {
        /// The functions of the library, by the types of its header.
        pub(super) struct Api {
            $(pub(super) $field: <sys::$name as Function>::Call,)*
            $(pub(super) $field_: sys::$name_,)*
        }

        impl Api {
            fn resolve(handle: &Handle, library: &Path) -> Result<Self, LoadError> {
                $(
                    let (symbol, version) = (name(stringify!($name)), $version);
                    // SAFETY: V1. A function pointer and a data pointer have one size here, null is `None`, and the
                    // type is what the header says of that symbol.
                    let $field: sys::$name = unsafe { std::mem::transmute(look_up(handle, symbol, version)) };
                    let $field = $field.ok_or_else(|| LoadError::NoSymbol {
                        library: library.to_owned(),
                        symbol,
                        version,
                    })?;
                )*
                $(
                    let symbol = name(stringify!($name_));
                    // SAFETY: V1. As above.
                    let $field_: sys::$name_ = unsafe { std::mem::transmute(look_up(handle, symbol, $version_)) };
                )*
                Ok(Self { $($field,)* $($field_,)* })
            }
        }
    };
}

/// The symbol of a function from the name of its type.
fn name(of_type: &'static str) -> &'static str {
    of_type.strip_suffix("_fn").unwrap_or(of_type)
}

fn look_up(handle: &Handle, symbol: &str, version: &str) -> *mut c_void {
    match (CString::new(symbol), CString::new(version)) {
        (Ok(symbol), Ok(version)) => handle.symbol(&symbol, &version),
        _ => std::ptr::null_mut(),
    }
}

// Everything else that is used is an inline function of the header, over the operations of a context.
api! {
    required {
        get_device_list: ibv_get_device_list_fn, "IBVERBS_1.1";
        free_device_list: ibv_free_device_list_fn, "IBVERBS_1.1";
        get_device_name: ibv_get_device_name_fn, "IBVERBS_1.1";
        get_device_guid: ibv_get_device_guid_fn, "IBVERBS_1.1";
        open_device: ibv_open_device_fn, "IBVERBS_1.1";
        close_device: ibv_close_device_fn, "IBVERBS_1.1";
        query_device: ibv_query_device_fn, "IBVERBS_1.1";
        query_port: ibv_query_port_fn, "IBVERBS_1.1";
        query_gid: ibv_query_gid_fn, "IBVERBS_1.1";
        get_async_event: ibv_get_async_event_fn, "IBVERBS_1.1";
        ack_async_event: ibv_ack_async_event_fn, "IBVERBS_1.1";
        alloc_pd: ibv_alloc_pd_fn, "IBVERBS_1.1";
        dealloc_pd: ibv_dealloc_pd_fn, "IBVERBS_1.1";
        reg_mr: ibv_reg_mr_fn, "IBVERBS_1.1";
        dereg_mr: ibv_dereg_mr_fn, "IBVERBS_1.1";
        create_comp_channel: ibv_create_comp_channel_fn, "IBVERBS_1.0";
        destroy_comp_channel: ibv_destroy_comp_channel_fn, "IBVERBS_1.0";
        create_cq: ibv_create_cq_fn, "IBVERBS_1.1";
        destroy_cq: ibv_destroy_cq_fn, "IBVERBS_1.1";
        get_cq_event: ibv_get_cq_event_fn, "IBVERBS_1.1";
        ack_cq_events: ibv_ack_cq_events_fn, "IBVERBS_1.1";
        create_srq: ibv_create_srq_fn, "IBVERBS_1.1";
        modify_srq: ibv_modify_srq_fn, "IBVERBS_1.1";
        destroy_srq: ibv_destroy_srq_fn, "IBVERBS_1.1";
        create_qp: ibv_create_qp_fn, "IBVERBS_1.1";
        modify_qp: ibv_modify_qp_fn, "IBVERBS_1.1";
        query_qp: ibv_query_qp_fn, "IBVERBS_1.1";
        destroy_qp: ibv_destroy_qp_fn, "IBVERBS_1.1";
    }
    optional {
        reg_mr_iova2: ibv_reg_mr_iova2_fn, "IBVERBS_1.8";
        query_gid_table: _ibv_query_gid_table_fn, "IBVERBS_1.11";
        reg_dmabuf_mr: ibv_reg_dmabuf_mr_fn, "IBVERBS_1.12";
    }
}

/// libibverbs, open. Everything that is made with it holds it.
pub struct Library {
    pub(super) api: Api,
    path: PathBuf,
    destroy_failures: AtomicU64,
    _handle: Handle,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Library {
    /// The name by which the system's library is found.
    pub const NAME: &str = "libibverbs.so.1";

    /// Opens the system's library.
    ///
    /// # Errors
    /// [`LoadError`]: there is none, or it lacks a symbol.
    pub fn open() -> Result<Arc<Self>, LoadError> {
        Self::open_at(Self::NAME)
    }

    /// Opens the library at `path`, which runs code of that file in this process. A name without a slash is looked
    /// for where the dynamic linker looks.
    ///
    /// # Errors
    /// [`LoadError`]: it is not there, or lacks a symbol.
    pub fn open_at(path: impl AsRef<Path>) -> Result<Arc<Self>, LoadError> {
        let path = path.as_ref();
        let handle = Handle::open(path)?;
        let api = Api::resolve(&handle, path)?;
        Ok(Arc::new(Self {
            api,
            path: path.to_owned(),
            destroy_failures: AtomicU64::new(0),
            _handle: handle,
        }))
    }

    /// The file, as it was asked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether memory can be registered with relaxed ordering (`ibv_reg_mr_iova2`, rdma-core 27).
    #[must_use]
    pub fn has_relaxed_ordering(&self) -> bool {
        self.api.reg_mr_iova2.is_some()
    }

    /// Whether memory of a device can be registered by its dma-buf (`ibv_reg_dmabuf_mr`, rdma-core 34).
    #[must_use]
    pub fn has_dmabuf(&self) -> bool {
        self.api.reg_dmabuf_mr.is_some()
    }

    /// How many objects the library refused to destroy when they were dropped. Each has been leaked.
    #[must_use]
    pub fn destroy_failures(&self) -> u64 {
        self.destroy_failures.load(Ordering::Relaxed)
    }

    /// Counts a destruction that failed, for those who cannot tell otherwise.
    pub(super) fn destroyed(&self, status: libc::c_int) {
        if status != 0 {
            self.destroy_failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}
