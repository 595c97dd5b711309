// Package e2e tests the built binary as its users meet it: as a process, over
// loopback, with curl, openssl, libcoap's coap-client and strongSwan's pki. Its
// tests have the build tag e2e; make test runs them.
//
// A test starts a server of its own with start, on free ports and in a directory
// of its own, and needs nothing else of the machine. When it ends, the server is
// stopped, and its log is searched for panics, internal errors and every secret
// the test has handled.
package e2e
