#!/bin/sh
# A CNI plugin for tests. What it does is written in files beside it: `plan-COMMAND` holds one of pass, fail,
# again, crash, hang, garbage, silent, daemon; without the file it passes on what it was given. Each call is
# noted in `calls`, its stdin in `stdin-COMMAND`.
here=${0%/*}
name=${0##*/}
cat >"$here/stdin-$CNI_COMMAND"
echo "$name $CNI_COMMAND $CNI_CONTAINERID netns=$CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>"$here/calls"
[ "$CNI_COMMAND" = VERSION ] && {
    echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}'
    exit 0
}
plan=pass
[ -e "$here/plan-$CNI_COMMAND" ] && plan=$(cat "$here/plan-$CNI_COMMAND")
case $plan in
fail)
    echo '{"cniVersion": "1.0.0", "code": 999, "msg": "the switch is on fire", "details": "rack 7"}'
    exit 1 ;;
again)
    echo '{"cniVersion": "1.0.0", "code": 11, "msg": "not yet"}'
    exit 1 ;;
crash)
    echo "panic: no such thing" >&2
    kill -SEGV $$ ;;
hang)
    sleep 1000 &
    echo "$$ $!" >"$here/hanging"
    wait ;;
garbage)
    echo 'ready' ;;
daemon)
    # Somebody who stays and keeps our stdout must not be waited for.
    setsid sleep 1000 &
    echo "$!" >"$here/daemon"
    printf %s '{"ips": [{"address": "10.9.9.9/24"}]}' ;;
silent)
    ;;
pass)
    if [ "$CNI_COMMAND" = ADD ]; then
        result=$(sed -n 's/.*"prevResult": *\({.*}\)}$/\1/p' "$here/stdin-ADD")
        [ "$result" ] || result='{"ips": [{"address": "10.9.9.9/24"}]}'
        printf '%s\n' "$result"
    fi ;;
esac
