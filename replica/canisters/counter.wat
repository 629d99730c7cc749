;; A counter: update "increment" adds one, query "read" tells; both reply a Candid nat.
;; The count is kept in heap memory at address 0 and so is lost on an upgrade, as in any canister
;; that doesn't save it to stable memory.
(module
  (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
  (import "ic0" "msg_reply" (func $reply))
  (memory 1)
  ;; Address 16: "DIDL", no types, one value, of type nat (0x7d); its LEB128 follows from address 23.
  (data (i32.const 16) "DIDL\00\01\7d")
  (func $answer
    (local $left i64)
    (local $at i32)
    (local.set $left (i64.load (i32.const 0)))
    (local.set $at (i32.const 23))
    (block $done
      (loop $more
        (br_if $done (i64.lt_u (local.get $left) (i64.const 128)))
        (i32.store8 (local.get $at)
          (i32.or (i32.const 128) (i32.and (i32.const 127) (i32.wrap_i64 (local.get $left)))))
        (local.set $left (i64.shr_u (local.get $left) (i64.const 7)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $more)))
    (i32.store8 (local.get $at) (i32.wrap_i64 (local.get $left)))
    (call $append (i32.const 16) (i32.sub (local.get $at) (i32.const 15)))
    (call $reply))
  (func (export "canister_update increment")
    (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
    (call $answer))
  (func (export "canister_query read")
    (call $answer)))
