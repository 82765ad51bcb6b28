package cryptopb

// ReasonDomain is the domain of the google.rpc.ErrorInfo that every refusal of
// a cryptoserver carries.
const ReasonDomain = "kluis.cryptoserver"

// Reason says, in ErrorInfo.reason, why a call was refused.
type Reason string

// The reasons there are.
const (
	ReasonMalformed          Reason = "MALFORMED"
	ReasonIdentityNotAllowed Reason = "IDENTITY_NOT_ALLOWED" // not on the method's allow-list
	ReasonRoleNotServed      Reason = "ROLE_NOT_SERVED"      // this server lacks the method's token
	ReasonTokenInvalid       Reason = "TOKEN_INVALID"        // the caller's access token
	ReasonTokenSpent         Reason = "TOKEN_SPENT"          // as many metering points were opened on the access token as it is good for: a new one
	ReasonPointsFull         Reason = "POINTS_FULL"          // no room to count the metering points of one more token: another server may have it
	ReasonSupplierInvalid    Reason = "SUPPLIER_INVALID"     // the supplier record, or the certificate under it
	ReasonScope              Reason = "SCOPE"                // a scope missing, or not the supplier's
	ReasonEmployee           Reason = "EMPLOYEE_REFUSED"     // the ID token, or it gives no role
	ReasonErrand             Reason = "ERRAND_REFUSED"       // the authorization details, or the role may not have them
	ReasonProfileMismatch    Reason = "PROFILE_MISMATCH"     // client and server have different market profiles
	ReasonEvidenceInvalid    Reason = "EVIDENCE_INVALID"     // a sealed fact that does not verify
	ReasonStepRefused        Reason = "STEP_REFUSED"
	ReasonNoRelation         Reason = "NO_RELATION"          // the caller has nothing to do with the metering point
	ReasonNotPermitted       Reason = "NOT_PERMITTED"        // this caller may not take this step
	ReasonConsentUnknown     Reason = "CONSENT_UNKNOWN"      // of this metering point and caller
	ReasonConsentAnswered    Reason = "CONSENT_ANSWERED"     // already
	ReasonConsentLapsed      Reason = "CONSENT_LAPSED"       // the request was not answered in time
	ReasonConsentEnded       Reason = "CONSENT_ENDED"        // expired, revoked, or by a move
	ReasonConsentNotPossible Reason = "CONSENT_NOT_POSSIBLE" // the market's rules could give nothing on it
	ReasonTooManyConsents    Reason = "TOO_MANY_CONSENTS"
	ReasonClockBehind        Reason = "CLOCK_BEHIND"       // the version before was sealed later than this server's clock says: another server's may be right
	ReasonKeyRecordInvalid   Reason = "KEY_RECORD_INVALID" // a data key record that is not what was minted
	ReasonSealedTooOften     Reason = "SEALED_TOO_OFTEN"   // the same block again and again
	ReasonUnknownEpoch       Reason = "UNKNOWN_KEK_EPOCH"
	ReasonKeyErased          Reason = "KEY_ERASED"          // the data key was erased: nothing is sealed under it
	ReasonControlStale       Reason = "CONTROL_FEED_STALE"  // no recent head of the control feed: another server may have one
	ReasonControlFork        Reason = "CONTROL_FEED_FORKED" // the feed contradicts the one the server knows
	ReasonCheckpointFork     Reason = "CHECKPOINT_FORKED"   // a larger tree was signed, or another of this size
	ReasonNotRecorded        Reason = "JOURNAL_UNAVAILABLE" // the journal cannot be written, so nothing is opened or sealed: another server may do so
	ReasonSealRate           Reason = "SEAL_RATE"           // this client seals faster than it may: later
	ReasonNoEpoch            Reason = "NO_ACTIVE_EPOCH"     // no KEK epoch was activated in the control feed
	ReasonTokenUnavailable   Reason = "HSM_UNAVAILABLE"
	ReasonTokenBusy          Reason = "HSM_BUSY" // the token is well and its queue full: another server may have room
	ReasonInternal           Reason = "INTERNAL"
)
